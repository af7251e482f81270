// What can be shown: each choice is a layer of the store and a way to look at it.

const COLOURS = [
  ['true', 'true colour', ['B04', 'B03', 'B02']],
  ['infrared', 'infrared', ['B08', 'B04', 'B03']],
  ['swir', 'short-wave infrared', ['B12', 'B08', 'B04']],
];

// [{id, title, group, kind, layer, variable, ...}] in the order of the page's lists.
export function choicesOf(layers) {
  return layers.flatMap((layer) => OF_KIND[layer.kind](layer));
}

const OF_KIND = {
  map: (layer) => [
    classes(layer, 'Maps'),
    ...(layer.variables.confidence ? [ramp(layer, `Confidence ${layer.name}`, 'Confidence')] : []),
  ],
  labels: (layer) => [classes(layer, 'Labels')],
  generalised: (layer) => [classes(layer, 'Generalised maps')],
  imagery: (layer) =>
    layer.periods.flatMap((period, place) =>
      COLOURS.filter(([, , bands]) => bands.every((band) => layer.bands.includes(band))).map(([id, title, bands]) => ({
        id: `${layer.id}:${period}-${id}`,
        title: `${layer.name} ${period}, ${title}`,
        group: 'Imagery',
        kind: 'imagery',
        layer,
        bands: bands.map((band) => [place, layer.bands.indexOf(band)]),
      })),
    ),
  change: (layer) => [
    {id: `${layer.id}:where`, title: layer.title, group: 'Change', kind: 'change', layer, variable: 'change'},
    {...classes(layer, 'Change'), id: `${layer.id}:to`, title: `${layer.title}: new class`, variable: 'to_code'},
    {...classes(layer, 'Change'), id: `${layer.id}:from`, title: `${layer.title}: old class`, variable: 'from_code'},
    {...ramp(layer, `${layer.title}: probability`, 'Change'), id: `${layer.id}:confidence`},
  ],
};

function classes(layer, group) {
  return {id: layer.id, title: layer.title, group, kind: 'classes', layer};
}

function ramp(layer, title, group) {
  return {id: `${layer.id}:confidence`, title, group, kind: 'ramp', layer, variable: 'confidence'};
}

// The variable to read of a choice with classes, at a level of the legend.
export function variableOf(choice, level) {
  return choice.variable ?? `level${Math.min(level, choice.layer.levels.at(-1))}`;
}
