// An element with properties and children; text is text, never markup.
export function elementOf(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
