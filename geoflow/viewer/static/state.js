// What is shown, as a value that the address of the page holds.

export function readState(defaults) {
  const said = new URLSearchParams(location.hash.slice(1));
  const state = {...defaults};
  for (const key of ['a', 'b']) if (said.has(key)) state[key] = said.get(key);
  for (const key of ['level', 'swipe', 'opacity']) {
    if (said.has(key) && Number.isFinite(Number(said.get(key)))) state[key] = Number(said.get(key));
  }
  if (said.has('off')) state.hidden = new Set(said.get('off').split(',').filter(Boolean).map(Number));
  if (said.has('under')) state.under = said.get('under') === '1';
  for (const key of ['view', 'pixel']) {
    const numbers = (said.get(key) ?? '').split(',').map(Number);
    if (said.has(key) && numbers.every(Number.isFinite)) state[key] = numbers;
  }
  return state;
}

export function writeState(state) {
  const said = new URLSearchParams();
  said.set('view', state.view.map((value) => +value.toFixed(2)).join(','));
  said.set('a', state.a);
  if (state.b) said.set('b', state.b);
  if (state.b) said.set('swipe', state.swipe.toFixed(3));
  said.set('level', state.level);
  if (state.opacity < 1) said.set('opacity', state.opacity);
  if (state.under) said.set('under', '1');
  if (state.hidden.size) said.set('off', [...state.hidden].sort((a, b) => a - b).join(','));
  if (state.pixel) said.set('pixel', state.pixel.map((value) => value.toFixed(1)).join(','));
  history.replaceState(null, '', `#${said.toString().replaceAll('%2C', ',').replaceAll('%2F', '/').replaceAll('%3A', ':')}`);
}
