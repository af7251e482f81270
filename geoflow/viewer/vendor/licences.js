// The licence of every package that is in the bundle, as text.
import fs from 'node:fs';
const lock = JSON.parse(fs.readFileSync('package-lock.json', 'utf8'));
for (const [path, entry] of Object.entries(lock.packages)) {
  if (!path || entry.dev || entry.optional || path.includes('@types/')) continue;
  const name = path.replace(/^.*node_modules\//, '');
  const file = fs.readdirSync(path).find((f) => /^(licen[cs]e|copying)/i.test(f));
  const text = file ? fs.readFileSync(`${path}/${file}`, 'utf8').trim() : '(no licence file in the package)';
  console.log(`${name} ${entry.version}: ${entry.license}\n\n${text}\n\n${'-'.repeat(80)}\n`);
}
