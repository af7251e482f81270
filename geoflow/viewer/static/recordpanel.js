// The card with everything that is known of one pixel, and its mark on the map.
import {Circle, Feature, Fill, Point, Stroke, Style, VectorLayer, VectorSource} from './vendor.js';
import {recordOf, spectraOf} from './record.js';
import {elementOf as el} from './elements.js';

const COLOURS = ['#1f77b4', '#ff7f0e', '#2ca02c', '#d62728', '#9467bd', '#8c564b'];

export class RecordPanel {
  constructor(card, body, app) {
    Object.assign(this, {card, body, app, turn: 0});
    const ring = new Circle({radius: 6, stroke: new Stroke({color: '#fff', width: 2}), fill: new Fill({color: '#d01c70'})});
    this.marks = new VectorSource();
    app.map.addLayer(new VectorLayer({source: this.marks, style: new Style({image: ring}), zIndex: 10}));
  }

  async show() {
    const {pixel} = this.app.state;
    const turn = ++this.turn;
    this.marks.clear();
    this.card.hidden = !pixel;
    if (!pixel) return;
    this.marks.addFeature(new Feature(new Point(pixel)));
    this.body.replaceChildren(el('p', {className: 'faint'}, 'reading …'));
    try {
      const record = await recordOf(this.app.pixels, this.app.legend, this.app.facts, pixel);
      if (turn === this.turn) this.body.replaceChildren(...this.parts(record));
    } catch (error) {
      if (turn === this.turn) this.body.replaceChildren(el('p', {}, `It cannot be read: ${error.message}`));
      throw error;
    }
  }

  parts({coordinate, lonlat, place, layers, scenes}) {
    const lines = [
      ['Latitude, longitude', `${lonlat[1].toFixed(6)}, ${lonlat[0].toFixed(6)}`],
      [this.app.facts.crs.code, coordinate.map((value) => value.toFixed(0)).join(', ')],
    ];
    if (!place) return [table(lines), el('p', {}, 'outside the country\'s grid')];
    lines.push(['Row, column', place.join(', ')]);
    return [table(lines), ...layers.flatMap((facts) => OF_KIND[facts.layer.kind].call(this, facts, scenes))];
  }

  coded(code, level) {
    const swatch = el('i');
    swatch.style.background = this.app.legend.colour(code);
    return el('span', {}, swatch, level ? `${code} ${this.app.legend.classes.get(code)?.name ?? ''}` : this.app.legend.label(code));
  }

  levels({layer, codes}) {
    if (!codes) return [el('h3', {}, layer.title), el('p', {className: 'faint'}, 'no data here')];
    return [el('h3', {}, layer.title), table([...codes].reverse().map((code, i) => [this.coded(code), `level ${layer.levels.at(-1 - i)}`]))];
  }

  spectra(layer, place) {
    const details = el('details', {}, el('summary', {}, 'Reflectance'));
    details.addEventListener('toggle', async () => {
      if (!details.open || details.children.length > 1) return;
      details.append(...chart(await spectraOf(this.app.pixels, layer, place), layer.bands));
    });
    return details;
  }
}

const OF_KIND = {
  map(facts) {
    const parts = this.levels(facts);
    if (!facts.codes) return parts;
    const rows = [];
    if (facts.confidence !== null) rows.push(['Confidence', `${facts.confidence} %`]);
    if (facts.second) rows.push([el('span', {}, 'Second: ', this.coded(facts.second)), facts.margin === null ? '' : `${facts.margin} % less`]);
    if (facts.clear !== null) rows.push(['Clear observations, at least', String(facts.clear)]);
    parts.push(table(rows));
    if (facts.probabilities.length) {
      const list = facts.probabilities.map(({code, percent}) => [this.coded(code), `${percent.toFixed(1)} %`]);
      parts.push(el('details', {}, el('summary', {}, 'Probabilities'), table(list)));
    }
    return parts;
  },
  labels(facts) {
    const parts = this.levels(facts);
    if (facts.border_m !== null && facts.codes) parts.push(table([['To the nearest class border', `${facts.border_m} m`]]));
    return parts;
  },
  generalised(facts) {
    return this.levels(facts);
  },
  imagery({layer, clear}, scenes) {
    const parts = [el('h3', {}, layer.title)];
    for (const period of layer.periods) {
      const used = (scenes[layer.name] ?? []).filter(({periods}) => periods?.includes(period));
      parts.push(table([[`${period}: clear observations`, String(clear[period])]]));
      for (const {id, date, cloud} of used) {
        const said = [date, cloud === null || cloud === undefined ? '' : `${Math.round(cloud)} % cloud`].filter(Boolean).join(', ');
        parts.push(el('div', {className: 'faint'}, `${id} (${said})`));
      }
    }
    parts.push(this.spectra(layer, this.app.pixels.place(this.app.state.pixel)));
    return parts;
  },
  change({layer, change, from, to, confidence}) {
    const title = el('h3', {}, layer.title);
    if (!change) return [title, el('p', {className: 'faint'}, 'no data here')];
    const rows = [[change === 2 ? 'changed' : 'unchanged', confidence === null ? '' : `probability of change ${confidence} %`]];
    if (from) rows.push([this.coded(from), layer.before ?? 'before']);
    if (to) rows.push([this.coded(to), layer.after ?? 'after']);
    return [title, table(rows)];
  },
};

function table(rows) {
  return el('table', {}, el('tbody', {}, ...rows.map((cells) => el('tr', {}, ...cells.map((cell) => el('td', {}, cell))))));
}

// Lines of reflectance over the bands, one for each period.
function chart(spectra, bands) {
  const [width, height, left, bottom] = [300, 120, 26, 16];
  const most = Math.max(10, ...spectra.flatMap(({percent}) => percent.map((value) => value ?? 0)));
  const x = (i) => left + (i * (width - left - 8)) / Math.max(1, bands.length - 1);
  const y = (value) => 6 + (1 - value / most) * (height - bottom - 6);
  const draw = (tag, attributes, text = '') => {
    const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };
  const svg = draw('svg', {viewBox: `0 0 ${width} ${height}`, role: 'img'});
  const ink = {fill: 'currentColor', 'font-size': 8};
  for (const value of [0, most / 2, most]) {
    svg.append(draw('line', {x1: left, x2: width - 8, y1: y(value), y2: y(value), stroke: 'currentColor', opacity: 0.2}));
    svg.append(draw('text', {...ink, x: left - 4, y: y(value) + 3, 'text-anchor': 'end'}, `${Math.round(value)}%`));
  }
  bands.forEach((band, i) => svg.append(draw('text', {...ink, x: x(i), y: height - 4, 'text-anchor': 'middle'}, band)));
  const names = spectra.map(({period, percent}, p) => {
    const points = percent.map((value, i) => (value === null ? null : `${x(i)},${y(value)}`)).filter(Boolean).join(' ');
    svg.append(draw('polyline', {points, fill: 'none', stroke: COLOURS[p % COLOURS.length], 'stroke-width': 1.5}));
    const name = el('span', {}, points ? `${period} ` : `${period} (not observed) `);
    name.style.color = COLOURS[p % COLOURS.length];
    return name;
  });
  return [svg, el('div', {className: 'faint'}, ...names)];
}
