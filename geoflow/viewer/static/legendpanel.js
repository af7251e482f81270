// The legend of one of the two layers: classes with switches and hectares in view, or a ramp.
import {countInView} from './legend.js';
import {variableOf} from './choices.js';
import {changeColour, rampColour} from './paint.js';
import {elementOf as el} from './elements.js';

const M2_PER_HA = 10000;

export class LegendPanel {
  constructor(target, app, side) {
    this.target = target;
    this.app = app;
    this.side = side;
    this.seen = new Set();
    this.turn = 0;
  }

  get choice() {
    return this.app.choice(this.app.state[this.side]);
  }

  // The layer on the right needs a legend of its own where it is not of the same classes as the one on the left.
  get needed() {
    return this.side === 'a' || (this.choice && (this.choice.kind !== 'classes' || this.app.choice(this.app.state.a).kind !== 'classes'));
  }

  show() {
    this.target.hidden = !this.needed;
    if (!this.needed) return;
    const {kind, title, layer} = this.choice;
    this.head = el('small');
    this.target.replaceChildren(el('h2', {}, title, this.head));
    if (kind === 'classes') this.showClasses();
    if (kind === 'ramp') this.target.append(...rampOf((share) => `rgb(${rampColour(share)})`, ['0 %', '100 %']));
    if (kind === 'change') {
      this.target.append(...rampOf((share) => changeBackground(share), ['unchanged', 'all changed']));
      this.target.append(el('p', {className: 'faint'}, 'From afar the share of a pixel that changed; close by, the pixels that did.'));
    }
    if (kind === 'imagery') {
      const said = Object.entries(layer.dates).map(([period, dates]) => `${period}: ${dates.join(' to ')}`);
      this.target.append(...said.map((text) => el('p', {className: 'faint'}, text)));
    }
    this.count();
  }

  showClasses() {
    const {legend, state} = this.app;
    const level = this.level;
    const off = el('button', {type: 'button'}, 'none');
    const on = el('button', {type: 'button'}, 'all');
    const codes = legend.groups(level).flatMap(([, list]) => list.map(({code}) => code));
    off.addEventListener('click', () => this.app.set({hidden: new Set(codes)}));
    on.addEventListener('click', () => this.app.set({hidden: new Set()}));
    this.target.append(el('div', {className: 'tools'}, 'Show', on, off));
    this.rows = new Map();
    for (const [top, list] of legend.groups(level)) {
      const rows = list.map((entry) => this.row(entry, state.hidden));
      if (top !== null) this.target.append(el('h3', {}, legend.label(top)));
      this.target.append(el('ul', {}, ...rows));
    }
  }

  row({code, name, colour}, hidden) {
    const box = el('input', {type: 'checkbox', checked: !hidden.has(code)});
    const swatch = el('i');
    swatch.style.background = colour;
    const ha = el('span', {className: 'ha'});
    const row = el('li', {}, el('label', {}, box, swatch, el('span', {}, `${code} ${name}`), ha));
    row.dataset.code = code;
    box.addEventListener('change', () => {
      const wanted = new Set(this.app.state.hidden);
      if (box.checked) wanted.delete(code);
      else wanted.add(code);
      this.app.set({hidden: wanted});
    });
    this.rows.set(code, {row, ha});
    return row;
  }

  get level() {
    const {layer, variable} = this.choice;
    return variable ? this.app.state.level : Math.min(this.app.state.level, layer.levels.at(-1));
  }

  // Hectares in view, once the view stands still.
  count() {
    this.counting = this.countAll();
  }

  // An answer that comes late is dropped.
  async countAll() {
    const {app, choice} = this;
    if (!this.needed || !['classes', 'change'].includes(choice.kind) || !app.map.getSize()) return;
    const turn = ++this.turn;
    const extent = app.view.calculateExtent(app.map.getSize());
    const factor = app.painter.factorAt(app.view.getResolution());
    const shares = choice.kind === 'change' && factor > 1;
    const variable = choice.kind === 'classes' ? variableOf(choice, app.state.level) : shares ? 'change_share' : 'change';
    let counts;
    try {
      counts = await countInView(app.pixels, choice.layer.id, variable, factor, extent);
    } catch {
      return; // the tile of that chunk has told it
    }
    if (turn !== this.turn) return;
    const ha = (app.facts.grid.resolution * factor) ** 2 / M2_PER_HA;
    const about = factor > 1 ? 'about ' : '';
    if (choice.kind === 'change') {
      let [changed, seen] = [0, 0];
      for (const [value, count] of counts) {
        changed += count * (shares ? value / 10000 : value === 2);
        seen += count;
      }
      this.head.textContent = `${about}${hectares(changed * ha)} of ${hectares(seen * ha)} ha in view`;
      return;
    }
    this.showCounts(counts, ha, about);
  }

  showCounts(counts, ha, about) {
    const {legend} = this.app;
    const sums = new Map();
    for (const [code, count] of counts) {
      const shown = legend.ancestor(code, this.level);
      sums.set(shown, (sums.get(shown) ?? 0) + count * ha);
      this.seen.add(shown);
    }
    for (const [code, {row, ha: cell}] of this.rows) {
      cell.textContent = sums.has(code) ? hectares(sums.get(code)) : '';
      row.classList.toggle('absent', !sums.has(code));
      row.hidden = !this.seen.has(code) && !this.app.state.hidden.has(code);
    }
    for (const heading of this.target.querySelectorAll('h3')) {
      heading.hidden = [...heading.nextElementSibling.children].every((row) => row.hidden);
    }
    const total = [...sums.values()].reduce((sum, value) => sum + value, 0);
    this.head.textContent = `${about}${hectares(total)} ha in view`;
  }
}

function hectares(value) {
  return value.toLocaleString('en', {maximumFractionDigits: value < 10 ? 2 : value < 1000 ? 1 : 0});
}

function changeBackground(share) {
  const [red, green, blue, alpha] = changeColour(share);
  return `rgba(${red}, ${green}, ${blue}, ${alpha / 255})`;
}

function rampOf(colour, ends) {
  const bar = el('div', {className: 'bar'});
  const steps = Array.from({length: 21}, (_, i) => colour(i / 20));
  bar.style.background = `linear-gradient(to right, ${steps.join(', ')})`;
  return [bar, el('div', {className: 'ends'}, ...ends.map((text) => el('span', {}, text)))];
}
