// Classes by code: names, colours, parents, and what is in view.
import {fromHex, NOTHING} from './paint.js';

export class Legend {
  constructor({name, levels, classes}) {
    this.name = name;
    this.levels = levels;
    this.classes = new Map(classes.map((entry) => [entry.code, entry]));
    this.deepest = levels.at(-1);
  }

  label(code) {
    const entry = this.classes.get(code);
    return entry ? `${code} ${entry.name}` : `${code}`;
  }

  colour(code) {
    return this.classes.get(code)?.colour ?? '#888888';
  }

  // The code of the class at a level that holds this one; itself where it lies above.
  ancestor(code, level) {
    let entry = this.classes.get(code);
    while (entry && entry.level > level && entry.parent !== null) entry = this.classes.get(entry.parent);
    return entry?.code ?? code;
  }

  // Colours by code, for codes of `from` shown as their classes of `level`; hidden classes are empty.
  table(level, hidden) {
    const table = new Uint32Array(65536).fill(NOTHING);
    for (const code of this.classes.keys()) {
      const shown = this.ancestor(code, level);
      table[code] = hidden.has(shown) ? NOTHING : fromHex(this.colour(shown));
    }
    return table;
  }

  // [heading, classes] of a level: grouped below the classes of the first one.
  groups(level) {
    const groups = new Map();
    for (const entry of this.classes.values()) {
      if (entry.level !== level) continue;
      const top = level === this.levels[0] ? null : this.ancestor(entry.code, this.levels[0]);
      if (!groups.has(top)) groups.set(top, []);
      groups.get(top).push(entry);
    }
    return [...groups].sort(([a], [b]) => a - b).map(([top, list]) => [top, list.sort((a, b) => a.code - b.code)]);
  }
}

// Pixels of each code within an extent, at the factor that is shown.
export async function countInView(pixels, layer, variable, factor, extent) {
  const {origin, resolution, chunk} = pixels.grid;
  const [height, width] = pixels.shape(factor);
  const step = resolution * factor;
  const clamp = (value, most) => Math.min(Math.max(value, 0), most);
  const left = clamp(Math.round((extent[0] - origin[0]) / step), width);
  const right = clamp(Math.round((extent[2] - origin[0]) / step), width);
  const top = clamp(Math.round((origin[1] - extent[3]) / step), height);
  const bottom = clamp(Math.round((origin[1] - extent[1]) / step), height);
  const counts = new Map();
  const waiting = [];
  for (let row = Math.floor(top / chunk); row * chunk < bottom; row++) {
    for (let col = Math.floor(left / chunk); col * chunk < right; col++) {
      waiting.push(pixels.chunk(layer, variable, factor, row, col).then(({data, width: wide, nodata}) => {
        const table = new Uint32Array(65536);
        for (let y = Math.max(top, row * chunk); y < Math.min(bottom, (row + 1) * chunk); y++) {
          const from = (y - row * chunk) * wide;
          for (let x = Math.max(left, col * chunk) - col * chunk; x < Math.min(right, (col + 1) * chunk) - col * chunk; x++) {
            table[data[from + x]]++;
          }
        }
        table.forEach((count, code) => {
          if (count && code !== nodata) counts.set(code, (counts.get(code) ?? 0) + count);
        });
      }));
    }
  }
  await Promise.all(waiting);
  return counts;
}
