// The quiz in the page: asks the cards that `measured build` made from the pages, and keeps what was answered here.

import { Store, StateError, read } from "./state.js"
import { forecast, tonight, untilItSits } from "./round.js"

const AGAIN = 1
const GOOD = 3
const RATINGS = { 1: "Again", 2: "Hard", 3: "Good", 4: "Easy" }
const TOPICS = { quantization: "Quantization", kv_cache: "KV cache", embeddings: "Embeddings", throughput: "Throughput" }
const root = document.querySelector("#ma-quiz")
const store = new Store()
let cards = []
let round = null // null while nothing is asked
let current = null

// ---- Elements ---------------------------------------------------------------------------------------------

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value
    else made.setAttribute(name, value)
  }
  made.append(...children.filter((child) => child !== null && child !== undefined))
  return made
}

// Markup comes from our own build, made of the pages that stand beside this one.
const markup = (text, tag = "div") => element(tag, { className: "ma-quiz-text", innerHTML: text })
const button = (label, action, properties = {}) =>
  element("button", { type: "button", className: "md-button", onclick: action, ...properties }, label)
const shuffled = (list) =>
  list.map((each) => [Math.random(), each]).sort((a, b) => a[0] - b[0]).map((pair) => pair[1])
const pick = (list) => list[Math.floor(Math.random() * list.length)]

function show(...children) {
  for (const each of document.querySelectorAll(".ma-quiz-around")) each.hidden = Boolean(current)
  root.replaceChildren(...children.filter(Boolean))
  const heading = root.querySelector("[tabindex='-1']")
  heading?.focus()
}

function when(due, now) {
  const minutes = (due - now) / 60_000
  if (minutes < 60) return `in ${Math.max(1, Math.round(minutes))} min`
  return minutes < 24 * 60 ? `in ${Math.round(minutes / 60)} h` : `in ${Math.round(minutes / 60 / 24)} days`
}

function status(text) {
  document.querySelector("#ma-quiz-status").textContent = text
}

const evidence = (card) =>
  element("p", { className: "ma-quiz-evidence" }, element("a", { href: `${card.page}.html${card.anchor ? `#${card.anchor}` : ""}`, target: "_blank" }, "The evidence"))

// ---- The start --------------------------------------------------------------------------------------------

function chosen() {
  const boxes = [...root.querySelectorAll("input[name=topic]")]
  const topics = boxes.filter((box) => box.checked).map((box) => box.value)
  return cards.filter((card) => topics.includes(card.topic))
}

function home(told = "") {
  round = current = null
  let state
  try {
    state = store.load()
  } catch (error) {
    if (!(error instanceof StateError)) throw error
    return show(
      element("h2", { tabIndex: -1 }, "What this browser keeps cannot be read"),
      element("p", {}, `${error.message}.`),
      element("p", {}, button("Save it as a file", save), " ", button("Start anew", reset)),
    )
  }
  const now = new Date()
  const rows = Object.entries(TOPICS).map(([topic, title]) => {
    const own = cards.filter((card) => card.topic === topic)
    const seen = own.filter((card) => state.due(card.id))
    const counts = [own.length, seen.length, seen.filter((card) => state.known(card.id)).length]
    const box = element("input", { type: "checkbox", name: "topic", value: topic, checked: true })
    return element("tr", {}, element("td", {}, element("label", {}, box, ` ${title}`)), ...counts.map((n) => element("td", {}, `${n}`)))
  })
  const due = untilItSits(cards, state, now).queue.length
  const start = (make) => () => begin(make(chosen(), store.load(), new Date()))
  show(
    element("h2", { tabIndex: -1 }, "What for?"),
    element(
      "p",
      { className: "ma-quiz-buttons" },
      button(`Until it sits: ${due} cards now`, start(untilItSits), { className: "md-button md-button--primary" }),
      ...[20, 60, 120].map((minutes) => button(`Tonight: ${minutes} min`, start((some, _, from) => tonight(some, minutes, from)))),
    ),
    element(
      "table",
      { className: "ma-quiz-topics" },
      element("thead", {}, element("tr", {}, ...["Topic", "Cards", "Seen", "Known"].map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, ...rows),
    ),
    bars(forecast(cards, state, now)),
    element(
      "p",
      { className: "ma-quiz-buttons" },
      button("Export", save),
      button("Import", load),
      button("Reset", () => confirm("Forget every answer in this browser?") && reset()),
    ),
  )
  status(told)
}

// Cards that come back on each of the next days, as bars with their counts.
function bars(counts) {
  const most = Math.max(1, ...counts)
  const days = counts.map((count, day) => {
    const bar = element("span", { className: "ma-quiz-bar" })
    bar.style.height = `${(count / most) * 3}em`
    return element("li", {}, element("span", {}, `${count}`), bar, element("span", {}, day ? `+${day}` : "today"))
  })
  return element("figure", {}, element("figcaption", {}, "Cards that come back, by day"), element("ol", { className: "ma-quiz-days" }, ...days))
}

function save() {
  const link = element("a", { href: URL.createObjectURL(new Blob([store.raw()], { type: "application/json" })), download: "measured-answers-quiz.json" })
  link.click()
  URL.revokeObjectURL(link.href)
}

function load() {
  const input = element("input", { type: "file", accept: ".json,application/json" })
  input.onchange = async () => {
    try {
      const other = read(await input.files[0].text(), input.files[0].name)
      const count = await store.change((state) => state.merge(other))
      home(`${count} answers are new.`)
    } catch (error) {
      if (!(error instanceof StateError)) throw error
      status(`${error.message}.`)
    }
  }
  input.click()
}

function reset() {
  store.reset()
  home("Every answer is forgotten.")
}

// ---- A round ----------------------------------------------------------------------------------------------

function begin(made) {
  round = made
  if (!round.queue.length) return home("Nothing is due. An evening's round drills anyway.")
  step()
}

function step() {
  current = round.next(new Date())
  if (!current) return finish()
  status("")
  ask(current)
}

function finish() {
  const misses = [...round.missed.values()].reduce((a, b) => a + b, 0)
  current = null
  const pages = round.reread().map((page) => element("li", {}, element("a", { href: `${page}.html` }, cards.find((card) => card.page === page).title)))
  const told = `${round.right.length} right, ${misses} missed, ${round.queue.length} not reached`
  show(
    element("h2", { tabIndex: -1 }, told),
    pages.length ? element("p", {}, "Reread:") : null,
    pages.length ? element("ul", {}, ...pages) : null,
    element("p", {}, button("Back to the start", () => home(), { className: "md-button md-button--primary" })),
  )
  round = null
}

async function rated(rating) {
  const card = current
  const now = new Date()
  const due = await store.change((state) => state.answer(card.id, rating, now))
  round.answered(card, rating)
  const full = store.unsaved ? " This browser has no room to keep answers: export them before you leave." : ""
  step()
  status(`${RATINGS[rating]}: back ${when(due, now)}. ${round ? `${round.queue.length + 1} to come.` : ""}${full}`)
}

async function undo() {
  if (!round?.last.length) return status("Nothing to take back in this round.")
  await store.change((state) => state.undo())
  round.undo(current)
  step()
  status("Taken back.")
}

// ---- The kinds of card ------------------------------------------------------------------------------------

function frame(card, kind, front, ...children) {
  show(
    element("p", { className: "ma-quiz-kind" }, `${TOPICS[card.topic]} · ${kind}`),
    element("div", { className: "ma-quiz-front", tabIndex: -1 }, markup(front)),
    ...children,
    element("p", { className: "ma-quiz-keys" }, button("Undo (u)", undo), " ", button("Stop (q)", finish)),
  )
}

function ask(card) {
  if (card.kind === "recall") return recall(card)
  if (card.kind === "spot") return spot(card)
  const options = card.kind === "choice" ? shuffled(card.options) : card.options
  const right = options.findIndex((option) => option.right)
  const back = card.kind === "choice" ? card.back : `<p><strong>${options[right].text}</strong></p>${card.back}`
  frame(
    card,
    card.kind === "choice" ? "which would you say?" : "people say",
    card.front,
    choices(options.map((option) => markup(option.text, "span")), right, () => markup(back)),
  )
}

function recall(card) {
  const reveal = button("Show the answer (Enter)", () => {
    const ratings = Object.entries(RATINGS).map(([n, label]) => button(`${label} (${n})`, () => rated(Number(n)), { className: "md-button ma-quiz-answer" }))
    place.replaceChildren(markup(card.back), evidence(card), element("p", { className: "ma-quiz-buttons" }, ...ratings))
    ratings[2].focus()
  }, { className: "md-button md-button--primary ma-quiz-go" })
  const place = element("div", { "aria-live": "polite" }, reveal)
  frame(card, "say it aloud", card.front, place)
}

function spot(card) {
  const slot = pick(card.slots)
  const wrong = pick(slot.wrong)
  const steps = card.steps.map((text, at) => markup(at === slot.step ? text.replace(slot.right, wrong) : text, "span"))
  frame(card, "spot the wrong number", card.front, choices(steps, slot.step, () => markup(`<p>Step ${slot.step + 1} said ${wrong}; it is ${slot.right}.</p>`)))
}

// Options as numbered buttons; after the answer, what was right and a button to go on.
function choices(options, right, explain) {
  const place = element("div", { "aria-live": "polite" })
  const buttons = options.map((option, at) =>
    element("button", { type: "button", className: "ma-quiz-option ma-quiz-answer", onclick: () => judge(at) }, element("span", { className: "ma-quiz-number" }, `${at + 1}`), option),
  )
  function judge(at) {
    buttons.forEach((each, index) => {
      each.disabled = true
      each.classList.remove("ma-quiz-answer")
      if (index === right) each.classList.add("right")
      else if (index === at) each.classList.add("wrong")
    })
    const go = button("Go on (Enter)", () => rated(at === right ? GOOD : AGAIN), { className: "md-button md-button--primary ma-quiz-go" })
    place.replaceChildren(element("p", { className: "ma-quiz-judged" }, at === right ? "Right." : `Wrong: it is ${right + 1}.`), explain(), evidence(current), go)
    go.focus()
  }
  return element("div", {}, element("div", { className: "ma-quiz-options" }, ...buttons), place)
}

// ---- Keys -------------------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (!current || event.ctrlKey || event.metaKey || event.altKey) return
  if (event.target.closest("input, textarea, [contenteditable], .md-search")) return
  const answers = [...root.querySelectorAll(".ma-quiz-answer")]
  const go = root.querySelector(".ma-quiz-go")
  const number = Number(event.key)
  const act =
    (number >= 1 && answers[number - 1]) ||
    (event.key === "Enter" && !event.target.closest("button, a") && go) ||
    { u: undo, q: finish }[event.key]
  if (!act) return
  event.preventDefault()
  event.stopPropagation()
  if (act.click) act.click()
  else act()
}, true)

addEventListener("storage", (event) => event.key === store.key && !round && cards.length && home())

try {
  const found = await fetch(new URL("cards.json", import.meta.url))
  cards = (await found.json()).cards
  home()
} catch (error) {
  show(element("p", {}, `The cards could not be loaded (${error.message}). Serve the site: make serve.`))
}
