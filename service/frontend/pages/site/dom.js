// Elements out of names, properties and children. Texts become text nodes and nothing else: they come from model files.

export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

let ids = 0;

// A label and the control that it names.
export function field(text, control, properties = {}) {
  control.id ||= `c${++ids}`;
  return el("div", { className: "field", ...properties }, el("label", { htmlFor: control.id }, text), control);
}
