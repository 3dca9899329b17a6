// What the quiz and the mock interview are drawn with.

export const TOPICS = { quantization: "Quantization", kv_cache: "KV cache", embeddings: "Embeddings", throughput: "Throughput" }
export const root = document.querySelector("#ma-quiz")

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value
    else made.setAttribute(name, value)
  }
  made.append(...children.filter((child) => child !== null && child !== undefined))
  return made
}

// Markup comes from our own build, made of the pages that stand beside this one.
export const markup = (text, tag = "div") => element(tag, { className: "ma-quiz-text", innerHTML: text })
export const button = (label, action, properties = {}) =>
  element("button", { type: "button", className: "md-button", onclick: action, ...properties }, label)
export const shuffled = (list) =>
  list.map((each) => [Math.random(), each]).sort((a, b) => a[0] - b[0]).map((pair) => pair[1])
export const pick = (list) => list[Math.floor(Math.random() * list.length)]

// Replaces what is shown; the focus goes to what has tabIndex -1. What stands around is hidden while something is asked.
export function show(asking, ...children) {
  for (const each of document.querySelectorAll(".ma-quiz-around")) each.hidden = asking
  root.replaceChildren(...children.filter(Boolean))
  root.querySelector("[tabindex='-1']")?.focus()
}

export function status(text) {
  document.querySelector("#ma-quiz-status").textContent = text
}

// Addresses are the site's, from whichever page this runs on.
export const address = (path) => new URL(`../../${path}`, import.meta.url).href
export const pageLink = (page, anchor, label, properties = {}) =>
  element("a", { href: address(`${page}.html${anchor ? `#${anchor}` : ""}`), ...properties }, label)
export const evidence = (card) =>
  element("p", { className: "ma-quiz-evidence" }, pageLink(card.page, card.anchor, "The evidence", { target: "_blank" }))
