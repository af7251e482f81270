// Zones to find by name: the one that was found is outlined and zoomed to.
import {GeoJSON, Stroke, Style, VectorLayer, VectorSource} from './vendor.js';

export class Zones {
  constructor(map, facts, input, list) {
    this.map = map;
    this.input = input;
    this.outline = new VectorSource();
    const style = [new Style({stroke: new Stroke({color: '#fff', width: 4})}), new Style({stroke: new Stroke({color: '#111', width: 1.5})})];
    map.addLayer(new VectorLayer({source: this.outline, style, zIndex: 5}));
    if (!facts.zones) return;
    this.load(list).catch((error) => {
      input.placeholder = `zones cannot be read: ${error.message}`;
    });
    input.addEventListener('change', () => this.find(input.value));
    input.addEventListener('input', () => this.found.has(input.value) && this.find(input.value));
  }

  async load(list) {
    this.found = new Map();
    const answer = await fetch('zones.json');
    if (!answer.ok) throw new Error(String(answer.status));
    for (const feature of new GeoJSON().readFeatures(await answer.json())) {
      const name = feature.get('name');
      this.found.set(name, [...(this.found.get(name) ?? []), feature]);
    }
    list.replaceChildren(...[...this.found.keys()].sort().map((name) => new Option(name, name)));
    document.getElementById('find-label').hidden = !this.found.size;
  }

  // The zone of that name, or the first whose name starts so; nothing clears the outline.
  find(text) {
    const wanted = text.trim().toLowerCase();
    this.outline.clear();
    if (!wanted) return;
    const names = [...this.found.keys()];
    const name = names.find((one) => one.toLowerCase() === wanted) ?? names.find((one) => one.toLowerCase().startsWith(wanted));
    this.input.setCustomValidity(name ? '' : 'no such zone');
    if (!name) return;
    this.outline.addFeatures(this.found.get(name));
    const padding = innerWidth < 720 ? [50, 20, innerHeight * 0.48, 20] : [30, 30, 30, 330];
    this.map.getView().fit(this.outline.getExtent(), {padding, duration: 0});
  }
}
