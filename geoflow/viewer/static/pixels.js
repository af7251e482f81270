// The store's pixels: chunks by path and place, decoded once and kept for a while.
import {FetchStore, openZarr, withConsolidatedMetadata, zarrRoot} from './vendor.js';

const KEPT_BYTES = 128e6;
const LEAST_KEPT = 60; // chunks: what two layers show on one screen

export class Pixels {
  static async open(url, grid) {
    const store = await withConsolidatedMetadata(new FetchStore(url), {format: 'v3'});
    return new Pixels(zarrRoot(store), grid);
  }

  constructor(root, grid) {
    this.root = root;
    this.grid = grid;
    this.arrays = new Map();
    this.chunks = new Map();
    this.most = Math.max(LEAST_KEPT, Math.floor(KEPT_BYTES / (2 * grid.chunk ** 2)));
  }

  array(path) {
    if (!this.arrays.has(path)) {
      this.arrays.set(path, openZarr.v3(this.root.resolve(path), {kind: 'array'}));
    }
    return this.arrays.get(path);
  }

  // {data, width, height, nodata} of one chunk; `lead` are the places in the dimensions before y and x.
  chunk(layer, variable, factor, row, col, lead = []) {
    const path = factor === 1 ? `${layer}/${variable}` : `overviews/${factor}/${layer}/${variable}`;
    const key = [path, ...lead, row, col].join('/');
    let wanted = this.chunks.get(key);
    this.chunks.delete(key);
    if (!wanted) {
      wanted = this.read(path, [...lead, row, col]);
      wanted.catch(() => this.chunks.delete(key));
    }
    this.chunks.set(key, wanted); // the last of the map is the one that was used last
    if (this.chunks.size > this.most) this.chunks.delete(this.chunks.keys().next().value);
    return wanted;
  }

  async read(path, place) {
    const array = await this.array(path);
    const {data} = await array.getChunk(place);
    const [height, width] = array.chunks.slice(-2);
    if (data.length !== height * width) throw new Error(`a chunk of ${path} is damaged: it has ${data.length} pixels`);
    return {data, width, height, nodata: array.fillValue};
  }

  // Shape of the grid at a factor, in pixels.
  shape(factor) {
    return this.grid.shape.map((size) => Math.ceil(size / factor));
  }

  // [row, column] of a coordinate at full resolution, or null outside.
  place([x, y]) {
    const {origin, resolution, shape} = this.grid;
    const row = Math.floor((origin[1] - y) / resolution);
    const col = Math.floor((x - origin[0]) / resolution);
    return row >= 0 && col >= 0 && row < shape[0] && col < shape[1] ? [row, col] : null;
  }

  // The value of a variable at a pixel of full resolution.
  async value(layer, variable, [row, col], lead = []) {
    const size = this.grid.chunk;
    const chunk = await this.chunk(layer, variable, 1, Math.floor(row / size), Math.floor(col / size), lead);
    return chunk.data[(row % size) * chunk.width + (col % size)];
  }
}
