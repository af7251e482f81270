// All that the store and the run know of one pixel.
import {transform} from './vendor.js';

const PROBABILITY_PARTS = 250;
const SHOWN_CLASSES = 5;

export async function recordOf(pixels, legend, facts, coordinate) {
  const place = pixels.place(coordinate);
  const lonlat = transform(coordinate, facts.crs.code, 'EPSG:4326');
  const record = {coordinate, lonlat, place, layers: []};
  if (!place) return record;
  record.layers = await Promise.all(facts.layers.map((layer) => OF_KIND[layer.kind]({pixels, legend, layer, place})));
  record.scenes = scenesAt(facts.scenes, coordinate);
  return record;
}

const OF_KIND = {
  map: async (at) => {
    const facts = await classesOf(at);
    if (!facts.codes) return facts;
    const read = (name) => valueOf(at, name);
    const [confidence, margin, second, clear] = await Promise.all(['confidence', 'margin', 'second', 'clear'].map(read));
    return {...facts, confidence, margin, second, clear, probabilities: await probabilitiesOf(at)};
  },
  labels: async (at) => ({...(await classesOf(at)), border_m: await valueOf(at, 'border_m')}),
  generalised: classesOf,
  imagery: async ({pixels, layer, place}) => {
    const clear = await Promise.all(layer.periods.map((_, period) => pixels.value(layer.id, 'clear', place, [period])));
    return {layer, clear: Object.fromEntries(layer.periods.map((period, i) => [period, clear[i]]))};
  },
  change: async (at) => {
    const names = ['change', 'from_code', 'to_code', 'confidence'];
    const [change, from, to, confidence] = await Promise.all(names.map((name) => valueOf(at, name)));
    return {layer: at.layer, change, from, to, confidence};
  },
};

async function classesOf(at) {
  const codes = await Promise.all(at.layer.levels.map((level) => valueOf(at, `level${level}`)));
  return codes.at(-1) === null ? {layer: at.layer, codes: null} : {layer: at.layer, codes};
}

// A value, or null where the variable is absent or not observed.
async function valueOf({pixels, layer, place}, name) {
  if (!layer.variables[name]) return null;
  const value = await pixels.value(layer.id, name, place);
  return value === layer.variables[name].nodata ? null : value;
}

async function probabilitiesOf({pixels, layer, place}) {
  if (!layer.classes) return [];
  const parts = await Promise.all(layer.classes.map((_, i) => pixels.value(layer.id, 'probabilities', place, [i])));
  return layer.classes
    .map((code, i) => ({code, percent: (100 * parts[i]) / PROBABILITY_PARTS, observed: parts[i] !== 255}))
    .filter(({percent, observed}) => observed && percent >= 0.5)
    .sort((a, b) => b.percent - a.percent)
    .slice(0, SHOWN_CLASSES);
}

// Reflectance of every band, by period, in percent; null where not observed.
export async function spectraOf(pixels, layer, place) {
  const {nodata} = layer.variables.reflectance;
  return Promise.all(layer.periods.map(async (period, p) => ({
    period,
    percent: await Promise.all(layer.bands.map(async (_, b) => {
      const value = await pixels.value(layer.id, 'reflectance', place, [p, b]);
      return value === nodata ? null : value / 100;
    })),
  })));
}

function scenesAt(scenes, coordinate) {
  const found = {};
  for (const [epoch, list] of Object.entries(scenes)) {
    found[epoch] = list.filter(({outline}) => outline && holds(outline, coordinate));
  }
  return found;
}

// Whether a ring holds a point: a ray to the right crosses it an odd number of times.
function holds(ring, [x, y]) {
  let inside = false;
  for (let i = 0, j = ring.length - 1; i < ring.length; j = i++) {
    const [[xi, yi], [xj, yj]] = [ring[i], ring[j]];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) inside = !inside;
  }
  return inside;
}
