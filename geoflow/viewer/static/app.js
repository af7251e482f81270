// The page: wires choices, map, legend and record together.
import {Map as OlMap, View, ScaleLine, Zoom, transform} from './vendor.js';
import {Pixels} from './pixels.js';
import {Legend} from './legend.js';
import {choicesOf} from './choices.js';
import {Painter, extentOf, projectionOf, swipedLayer} from './sources.js';
import {readState, writeState} from './state.js';
import {LegendPanel} from './legendpanel.js';
import {RecordPanel} from './recordpanel.js';
import {Zones} from './zones.js';

const $ = (id) => document.getElementById(id);

function tell(text) {
  $('notice').textContent = text;
  $('notice').hidden = !text;
}

class App {
  constructor(facts, pixels) {
    this.facts = facts;
    this.pixels = pixels;
    this.legend = new Legend(facts.legend);
    this.choices = choicesOf(facts.layers);
    if (!this.choices.length) throw new Error('the store holds no layer that can be shown');
    const projection = projectionOf(facts.crs, facts.grid);
    const imagery = facts.layers.find(({kind}) => kind === 'imagery');
    this.painter = new Painter(pixels, this.legend, projection, imagery, tell);
    this.state = this.firstState();
    this.makeMap(projection);
    this.zones = new Zones(this.map, facts, $('find'), $('places'));
    this.legendPanels = [new LegendPanel($('legend'), this, 'a'), new LegendPanel($('legend-b'), this, 'b')];
    this.recordPanel = new RecordPanel($('record'), $('record-body'), this);
    this.makeControls();
    this.listen();
    this.show();
  }

  firstState() {
    const {factors, resolution} = this.facts.grid;
    const extent = extentOf(this.facts.grid);
    const defaults = {
      a: this.choices[0].id, b: '', level: this.legend.deepest, swipe: 0.5, opacity: 1, under: false, hidden: new Set(),
      view: [(extent[0] + extent[2]) / 2, (extent[1] + extent[3]) / 2, Math.max(...factors) * resolution], pixel: null,
    };
    this.home = !location.hash.includes('view=');
    const state = readState(defaults);
    if (!this.choice(state.a)) state.a = defaults.a;
    if (!this.choice(state.b)) state.b = '';
    if (!this.legend.levels.includes(state.level)) state.level = defaults.level;
    state.swipe = Math.min(Math.max(state.swipe, 0), 1);
    state.opacity = Math.min(Math.max(state.opacity, 0), 1);
    return state;
  }

  choice(id) {
    return this.choices.find((choice) => choice.id === id);
  }

  makeMap(projection) {
    const {state} = this;
    const extent = extentOf(this.facts.grid);
    const {resolution, factors} = this.facts.grid;
    this.view = new View({
      projection, center: state.view.slice(0, 2), resolution: state.view[2],
      minResolution: resolution / 16, maxResolution: Math.max(...factors) * resolution * 8, enableRotation: false,
      extent: around(extent), constrainOnlyCenter: true,
    });
    this.map = new OlMap({target: 'map', view: this.view, controls: [new Zoom(), new ScaleLine()], keyboardEventTarget: $('map')});
    const [left, right] = [() => (state.b ? [0, state.swipe] : null), () => [state.swipe, 1]];
    this.under = swipedLayer(this.map, () => null);
    this.a = swipedLayer(this.map, left);
    this.b = swipedLayer(this.map, right);
    for (const layer of [this.under, this.a, this.b]) this.map.addLayer(layer);
    if (this.home) this.fit(extent);
  }

  fit(extent) {
    const narrow = innerWidth < 720;
    this.view.fit(extent, {padding: narrow ? [50, 10, innerHeight * 0.48, 10] : [20, 20, 20, 320]});
  }

  makeControls() {
    const groups = new Map();
    for (const choice of this.choices) {
      if (!groups.has(choice.group)) groups.set(choice.group, []);
      groups.get(choice.group).push(choice);
    }
    for (const id of ['a', 'b']) {
      if (id === 'b') $(id).append(new Option('nothing', ''));
      for (const [title, choices] of groups) {
        const group = document.createElement('optgroup');
        group.label = title;
        group.append(...choices.map((choice) => new Option(choice.title, choice.id)));
        $(id).append(group);
      }
    }
    for (const level of this.legend.levels) {
      const button = Object.assign(document.createElement('button'), {type: 'button', textContent: `Level ${level}`});
      button.setAttribute('role', 'radio');
      button.addEventListener('click', () => this.set({level}));
      $('levels').append(button);
    }
    $('title').textContent = document.title = this.facts.title;
    const sentences = [...this.facts.attribution, `${this.facts.crs.name} (${this.facts.crs.code})`, 'Made with geoflow'];
    $('attribution').textContent = sentences.map((text) => text.replace(/\.$/, '')).join(' · ');
    if (this.facts.status && this.facts.status !== 'complete') tell(`This run is not complete: ${this.facts.status}`);
    if (!this.facts.layers.some(({kind}) => kind === 'imagery')) $('under').closest('label').hidden = true;
    const where = Object.assign(document.createElement('output'), {id: 'where'});
    document.body.append(where);
    this.map.on('pointermove', ({coordinate}) => {
      const [lon, lat] = transform(coordinate, this.facts.crs.code, 'EPSG:4326');
      where.textContent = `${lat.toFixed(5)}, ${lon.toFixed(5)}`;
    });
  }

  listen() {
    const {state} = this;
    $('a').addEventListener('change', () => this.set({a: $('a').value}));
    $('b').addEventListener('change', () => this.set({b: $('b').value}));
    $('opacity').addEventListener('input', () => this.set({opacity: Number($('opacity').value)}));
    $('under').addEventListener('change', () => this.set({under: $('under').checked}));
    $('choices').addEventListener('submit', (event) => event.preventDefault());
    $('fold').addEventListener('click', () => {
      const folded = $('panel').classList.toggle('folded');
      $('fold').setAttribute('aria-expanded', String(!folded));
    });
    $('theme').addEventListener('click', () => setTheme(document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark'));
    $('help-button').addEventListener('click', () => $('help').showModal());
    $('close-record').addEventListener('click', () => this.set({pixel: null}));
    this.map.on('singleclick', ({coordinate}) => this.set({pixel: coordinate}));
    this.map.on('moveend', () => {
      state.view = [...this.view.getCenter(), this.view.getResolution()];
      writeState(state);
      for (const panel of this.legendPanels) panel.count();
    });
    this.map.on('loadstart', () => document.body.classList.add('busy'));
    this.map.on('loadend', () => document.body.classList.remove('busy'));
    window.addEventListener('hashchange', () => location.reload());
    window.addEventListener('keydown', (event) => this.key(event));
    this.listenToDivider();
  }

  listenToDivider() {
    const divider = $('divider');
    const drag = (event) => this.set({swipe: Math.min(Math.max(event.clientX / innerWidth, 0), 1)});
    divider.addEventListener('pointerdown', (event) => {
      divider.setPointerCapture(event.pointerId);
      divider.addEventListener('pointermove', drag);
    });
    divider.addEventListener('pointerup', () => divider.removeEventListener('pointermove', drag));
    divider.addEventListener('keydown', ({key}) => {
      if (key === 'ArrowLeft') this.nudge(-0.02);
      if (key === 'ArrowRight') this.nudge(0.02);
    });
  }

  nudge(step) {
    this.set({swipe: Math.min(Math.max(this.state.swipe + step, 0), 1)});
  }

  key(event) {
    const typing = event.target.matches('input[type=search], select, textarea');
    if (event.ctrlKey || event.metaKey || event.altKey || (typing && event.key !== 'Escape') || $('help').open) return;
    const {state} = this;
    const actions = {
      x: () => state.b && this.set({a: state.b, b: state.a}),
      u: () => this.set({under: !state.under}),
      '[': () => this.nudge(-0.05),
      ']': () => this.nudge(0.05),
      '/': () => $('find').focus(),
      '?': () => $('help').showModal(),
      Home: () => this.fit(extentOf(this.facts.grid)),
      Escape: () => (typing ? event.target.blur() : this.set({pixel: null})),
      Enter: () => event.target === $('map') && this.set({pixel: this.view.getCenter()}),
    };
    const level = this.legend.levels.find((number) => String(number) === event.key);
    const action = level ? () => this.set({level}) : actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  set(changes) {
    Object.assign(this.state, changes);
    this.show(Object.keys(changes));
  }

  // Bring the page in line with the state; `changed` names what differs, everything without.
  show(changed = null) {
    const {state} = this;
    const any = (...keys) => changed === null || keys.some((key) => changed.includes(key));
    if (any('a', 'b', 'level', 'hidden')) this.paint();
    if (any('under', 'a')) this.paintUnder();
    for (const layer of [this.a, this.b]) layer.setOpacity(state.opacity);
    for (const id of ['a', 'b', 'opacity']) $(id).value = state[id];
    $('under').checked = state.under;
    const levelled = [state.a, state.b].some((id) => this.choice(id)?.kind === 'classes');
    this.legend.levels.forEach((level, i) => {
      const button = $('levels').children[i];
      button.setAttribute('aria-checked', String(level === state.level));
      button.disabled = !levelled;
    });
    this.showDivider();
    if (any('a', 'b', 'level', 'hidden')) for (const panel of this.legendPanels) panel.show();
    if (any('pixel')) this.recordPanel.show();
    this.map.render();
    writeState(state);
  }

  paint() {
    const {state} = this;
    for (const id of ['a', 'b']) {
      const choice = this.choice(state[id]);
      this[id].setSource(choice ? this.painter.source(choice, state.level, state.hidden) : null);
    }
  }

  // The imagery of the epoch that is shown, of its last period, in the first colours that its bands allow.
  paintUnder() {
    const {a, under} = this.state;
    const of = this.choices.filter(({kind}) => kind === 'imagery');
    const name = this.choice(a).layer.name;
    const choice = of.filter(({layer, id}) => name.includes(layer.name) && id.endsWith('-true')).at(-1) ?? of[0];
    this.under.setSource(under && choice ? this.painter.source(choice, 1, new Set()) : null);
  }

  showDivider() {
    const {state} = this;
    for (const id of ['divider', 'left-name', 'right-name']) {
      $(id).hidden = !state.b;
      $(id).style.left = `${100 * state.swipe}%`;
    }
    $('divider').setAttribute('aria-valuenow', String(Math.round(100 * state.swipe)));
    $('left-name').textContent = this.choice(state.a).title;
    $('right-name').textContent = this.choice(state.b)?.title ?? '';
  }
}

// The country and as much again on each side: what lies at its edge can be brought beside the panel.
function around([left, bottom, right, top]) {
  const [width, height] = [right - left, top - bottom];
  return [left - width, bottom - height, right + width, top + height];
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
}

async function start() {
  setTheme(matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light');
  const answer = await fetch('view.json');
  if (!answer.ok) throw new Error(`view.json: ${answer.status}`);
  const facts = await answer.json();
  const pixels = await Pixels.open(new URL('store', location.href).href, facts.grid);
  window.viewer = new App(facts, pixels);
}

start().catch((error) => {
  tell(`The map cannot be shown: ${error.message}`);
  throw error;
});
