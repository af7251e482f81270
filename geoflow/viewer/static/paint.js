// From chunks to coloured tiles. A colour is a 32-bit number as a canvas keeps it: alpha, blue, green, red.

export const NOTHING = 0;

const CHANGED = [208, 28, 112];
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis, as matplotlib has it

export function rgba(red, green, blue, alpha = 255) {
  return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

export function fromHex(hex) {
  return rgba(parseInt(hex.slice(1, 3), 16), parseInt(hex.slice(3, 5), 16), parseInt(hex.slice(5, 7), 16));
}

export function rampColour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const low = Math.min(Math.floor(at), RAMP.length - 2);
  return RAMP[low].map((value, i) => Math.round(value + (RAMP[low + 1][i] - value) * (at - low)));
}

export function changeColour(share) {
  // A patch must be seen from afar, where it is a small part of a pixel: opacity grows fast at the start.
  return [...CHANGED, share > 0 ? Math.round(255 * Math.min(1, 0.3 + 0.7 * Math.sqrt(share))) : 0];
}

// One canvas from one layer of numbers and a table of colours.
export function paintTable(chunk, table, size) {
  return painted(chunk, size, (target, data, from, to, count) => {
    for (let i = 0; i < count; i++) target[to + i] = table[data[from + i]];
  });
}

// One canvas from three layers of reflectance and their stretches, [low, high] each.
export function paintComposite(chunks, stretches, size) {
  const [red, green, blue] = chunks;
  const scale = stretches.map(([low, high]) => [low, 255 / Math.max(1, high - low)]);
  const byte = (value, [low, gain]) => Math.min(255, Math.max(0, (value - low) * gain)) & 255;
  return painted(red, size, (target, data, from, to, count) => {
    for (let i = 0; i < count; i++) {
      const [r, g, b] = [data[from + i], green.data[from + i], blue.data[from + i]];
      if (r === red.nodata || g === green.nodata || b === blue.nodata) continue;
      target[to + i] = rgba(byte(r, scale[0]), byte(g, scale[1]), byte(b, scale[2]));
    }
  });
}

// `size`: the [height, width] that lie within the country; the rest of the tile stays empty.
function painted(chunk, size, row) {
  const [height, width] = [Math.min(size[0], chunk.height), Math.min(size[1], chunk.width)];
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = size.edge;
  if (height > 0 && width > 0) {
    const context = canvas.getContext('2d');
    const image = context.createImageData(width, height);
    const target = new Uint32Array(image.data.buffer);
    for (let y = 0; y < height; y++) row(target, chunk.data, y * chunk.width, y * width, width);
    context.putImageData(image, 0, 0);
  }
  return canvas;
}

// [low, high] between which most values of a chunk lie; nodata left out.
export function stretchOf(chunk) {
  const seen = Array.from(chunk.data).filter((value) => value !== chunk.nodata).sort((a, b) => a - b);
  if (!seen.length) return [0, 3000];
  return [seen[Math.floor(0.02 * (seen.length - 1))], seen[Math.ceil(0.98 * (seen.length - 1))]];
}
