// Layers of the map that are painted from the store's chunks: one tile is one chunk.
import {ImageTile, Projection, TileGrid, addProjection, getProjection, proj4, registerProj4, TileLayer, getRenderPixel} from './vendor.js';
import {changeColour, paintComposite, paintTable, rampColour, rgba, stretchOf, NOTHING} from './paint.js';
import {variableOf} from './choices.js';

export function extentOf({origin, resolution, shape}) {
  return [origin[0], origin[1] - shape[0] * resolution, origin[0] + shape[1] * resolution, origin[1]];
}

// The store's own CRS: nothing is reprojected, so a pixel is what the store says.
export function projectionOf(crs, grid) {
  proj4.defs(crs.code, crs.proj4);
  registerProj4(proj4);
  const found = getProjection(crs.code) ?? new Projection({code: crs.code, units: 'm'});
  found.setExtent(extentOf(grid));
  addProjection(found);
  return found;
}

export class Painter {
  constructor(pixels, legend, projection, imagery, tell) {
    Object.assign(this, {pixels, legend, projection, imagery, tell});
    const {origin, resolution, factors, chunk} = pixels.grid;
    this.factors = [...factors].sort((a, b) => b - a);
    this.tileGrid = new TileGrid({
      origin,
      extent: extentOf(pixels.grid),
      resolutions: this.factors.map((factor) => factor * resolution),
      tileSize: chunk,
    });
    this.stretches = new Map();
  }

  // The factor at which a view of this resolution is painted.
  factorAt(resolution) {
    return this.factors[this.tileGrid.getZForResolution(resolution)];
  }

  source(choice, level, hidden) {
    const paint = this.painterOf(choice, level, hidden);
    return new ImageTile({
      tileGrid: this.tileGrid,
      projection: this.projection,
      interpolate: false,
      transition: 0,
      wrapX: false,
      loader: async (z, col, row) => {
        try {
          return await paint(this.factors[z], row, col);
        } catch (error) {
          this.tell(`${choice.title}: ${error.cause?.message ?? error.message}`);
          throw error;
        }
      },
    });
  }

  painterOf(choice, level, hidden) {
    const {layer, kind} = choice;
    if (kind === 'imagery') return (factor, row, col) => this.composite(choice, factor, row, col);
    if (kind === 'classes') {
      const table = this.legend.table(level, hidden);
      return this.byTable(layer, () => variableOf(choice, level), table);
    }
    if (kind === 'ramp') return this.byTable(layer, () => choice.variable, rampTable());
    const shares = shareTable();
    const states = new Uint32Array(65536).fill(NOTHING);
    states[2] = rgba(...changeColour(1));
    const fine = this.byTable(layer, () => 'change', states);
    const coarse = this.byTable(layer, () => 'change_share', shares);
    return (factor, row, col) => (factor === 1 ? fine : coarse)(factor, row, col);
  }

  byTable(layer, variable, table) {
    return async (factor, row, col) => {
      const chunk = await this.pixels.chunk(layer.id, variable(), factor, row, col);
      return paintTable(chunk, table, this.within(factor, row, col));
    };
  }

  async composite(choice, factor, row, col) {
    const [chunks, stretches] = await Promise.all([
      Promise.all(choice.bands.map((lead) => this.pixels.chunk(choice.layer.id, 'reflectance', factor, row, col, lead))),
      Promise.all(choice.bands.map((lead) => this.stretch(lead))),
    ]);
    return paintComposite(chunks, stretches, this.within(factor, row, col));
  }

  // One stretch for a band and period of all epochs, of the first one, so that what looks brighter is brighter.
  stretch(lead) {
    const key = lead.join('/');
    if (!this.stretches.has(key)) {
      const coarsest = this.factors[0];
      const middle = this.pixels.shape(coarsest).map((size) => Math.floor(size / 2 / this.pixels.grid.chunk));
      const chunk = this.pixels.chunk(this.imagery.id, 'reflectance', coarsest, ...middle, lead);
      this.stretches.set(key, chunk.then(stretchOf));
    }
    return this.stretches.get(key);
  }

  // How much of a tile lies within the country.
  within(factor, row, col) {
    const {chunk} = this.pixels.grid;
    const size = this.pixels.shape(factor).map((whole, i) => Math.min(chunk, whole - [row, col][i] * chunk));
    return Object.assign(size, {edge: chunk});
  }
}

function rampTable() {
  const table = new Uint32Array(256).fill(NOTHING);
  for (let percent = 0; percent <= 100; percent++) table[percent] = rgba(...rampColour(percent / 100));
  return table;
}

function shareTable() {
  const table = new Uint32Array(65536).fill(NOTHING);
  for (let share = 1; share <= 10000; share++) table[share] = rgba(...changeColour(share / 10000));
  return table;
}

// A layer that is drawn on one side of the swipe's line only; `side` gives [from, to] as shares of the width, or null.
export function swipedLayer(map, side) {
  const layer = new TileLayer({preload: 2});
  layer.on('prerender', (event) => {
    const bounds = side();
    const context = event.context;
    context.save();
    if (!bounds) return;
    const [width, height] = map.getSize();
    const corners = [[bounds[0], 0], [bounds[1], 0], [bounds[1], 1], [bounds[0], 1]];
    context.beginPath();
    corners.forEach(([x, y], i) => {
      const at = getRenderPixel(event, [x * width, y * height]);
      if (i) context.lineTo(...at);
      else context.moveTo(...at);
    });
    context.closePath();
    context.clip();
  });
  layer.on('postrender', (event) => event.context.restore());
  return layer;
}
