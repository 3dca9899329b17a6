// The mock interview: question, time to speak or write, points to tick, a follow-up by what was missed; and its report.
// The twin of measured/interview.py (what comes) and measured/mock.py (how a round goes).

import { TOPICS, button, element, markup, pageLink, root, show, status } from "./elements.js"

const LEVELS = ["junior", "senior", "staff"]
const SPEAK_SECONDS = 120
const REREAD = 5 // pages that a report sends back to

// The follow-up that an interviewer would ask next; see choose() in measured/interview.py.
export function choose(followups, missed, ticked) {
  const wanted = 2 * missed.length > missed.length + ticked.length ? 0 : missed.length ? 1 : 2
  const nearer = (a, b) => Math.abs(a - wanted) - Math.abs(b - wanted) || a - b
  const level = LEVELS[followups.map((each) => LEVELS.indexOf(each.level)).sort(nearer)[0]]
  const near = (each, points) => points.reduce((sum, at) => sum + each.points[at], 0)
  const better = (a, b) => near(b, missed) - near(a, missed) || near(b, ticked) - near(a, ticked)
  return followups.filter((each) => each.level === level).sort(better)[0]
}

let round = null // null while nobody is interviewed, nor reads a report
let keys = {} // what a key does on the screen that is shown
export const going = () => round !== null

export async function start(topics, minutes, home) {
  if (going()) return
  if (!topics.length) return status("Choose a topic to be asked about.")
  round = { done: [], started: new Date(), home }
  status("The questions are being loaded.")
  try {
    const found = await fetch(new URL("interview.json", import.meta.url))
    const asked = (await found.json()).interviews.filter((each) => topics.includes(each.topic))
    const placed = asked.map((each) => [each.asked, Math.random(), each]).sort((a, b) => a[0] - b[0] || a[1] - b[1])
    round.queue = placed.map((each) => each[2])
  } catch (error) {
    round = null
    return status(`The questions could not be loaded (${error.message}).`)
  }
  status("")
  round.until = Date.now() + minutes * 60_000
  document.addEventListener("keydown", pressed, true)
  next()
}

function leave() {
  const { home } = round
  round = null
  home()
}

// While an interview goes on, single keys are its own: the theme would turn pages at some of them.
function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || (event.key.length > 1 && event.key !== "Enter")) return
  if (event.target !== document.body && !root.contains(event.target)) return
  if (event.target.closest("textarea") || (event.key === "Enter" && event.target.closest("button, a"))) return
  event.stopPropagation()
  const act = keys[event.key.toLowerCase()]
  if (!act || event.repeat) return
  event.preventDefault()
  act()
}

// One screen of a question: what can be done on it, and which keys do it.
function screen(actions, ...children) {
  keys = { ...actions, q: finish }
  show(true, ...children, element("p", { className: "ma-quiz-keys" }, button("Stop (q)", finish)))
}

const go = (label, action) => button(label, action, { className: "md-button md-button--primary" })
const kind = (text) => element("p", { className: "ma-quiz-kind" }, text)
const heading = (tag, text, focused) =>
  element(tag, { className: "ma-quiz-front ma-mock-heading", ...(focused ? { tabIndex: -1 } : {}) }, markup(text, "span"))
const clock = (seconds) => `${Math.floor(Math.abs(seconds) / 60)}:${`${Math.abs(seconds) % 60}`.padStart(2, "0")}`

function next() {
  if (!round.queue.length || Date.now() >= round.until) return finish()
  const asked = round.queue.shift()
  const began = Date.now()
  const timer = element("span", { role: "timer", "aria-live": "off" })
  let told = false
  function tick() {
    const left = SPEAK_SECONDS - Math.round((Date.now() - began) / 1000)
    timer.textContent = left < 0 ? `${clock(left)} over time` : `${clock(left)} left`
    timer.classList.toggle("over", left < 0)
    if (left < 0 && !told) status("Time to come to an end.")
    told = left < 0
  }
  const written = element("textarea", { id: "ma-mock-written", rows: 6 })
  const on = () => {
    clearInterval(round.ticking)
    status("")
    points(asked, Math.round((Date.now() - began) / 1000), written.value.trim())
  }
  screen(
    { enter: on },
    kind(`${TOPICS[asked.topic]} · question ${round.done.length + 1}`),
    heading("h2", asked.question, true),
    element("p", { className: "ma-mock-time" }, timer),
    element("label", { htmlFor: written.id }, "Say it aloud, or write it here:"),
    written,
    element("p", { className: "ma-quiz-buttons" }, go("Show the key points (Enter)", on)),
  )
  tick()
  round.ticking = setInterval(tick, 1000)
}

function points(asked, seconds, written) {
  const boxes = asked.points.map((_, at) => element("input", { type: "checkbox", name: "point", value: at }))
  const rows = asked.points.map((text, at) =>
    element("label", { className: "ma-quiz-option" }, boxes[at], element("span", { className: "ma-quiz-number" }, `${at + 1}`), markup(text, "span")),
  )
  const on = () => {
    const ticked = boxes.flatMap((box, at) => (box.checked ? [at] : []))
    const missed = boxes.flatMap((box, at) => (box.checked ? [] : [at]))
    const answered = { asked, seconds, ticked, missed }
    round.done.push(answered)
    followup(answered)
  }
  const toggles = Object.fromEntries(boxes.slice(0, 9).map((box, at) => [`${at + 1}`, () => box.click()]))
  screen(
    { ...toggles, enter: on },
    kind(`${TOPICS[asked.topic]} · question ${round.done.length + 1} · ${seconds} s`),
    heading("h2", asked.question),
    element(
      "div",
      { className: written ? "ma-mock-beside" : "" },
      element(
        "fieldset",
        { className: "ma-quiz-options" },
        element("legend", { tabIndex: -1 }, "Tick the points that you made, by number or by hand"),
        ...rows,
      ),
      written ? element("section", {}, element("h3", {}, "What you wrote"), element("p", { className: "ma-mock-written" }, written)) : null,
    ),
    element("p", { className: "ma-quiz-buttons" }, go("Go on (Enter)", on)),
  )
}

function followup(answered) {
  const { asked, missed, ticked } = answered
  const chosen = choose(asked.followups, missed, ticked)
  const held = (yes) => () => {
    Object.assign(answered, { chosen, held: yes })
    next()
  }
  const reveal = () => {
    place.replaceChildren(
      element("div", { className: "ma-mock-answer", tabIndex: -1 }, markup(chosen.answer)),
      element("p", { className: "ma-quiz-buttons" }, button("I had it (y)", held(true)), button("I had not (n)", held(false))),
    )
    keys = { y: held(true), n: held(false), q: finish }
    place.firstChild.focus()
  }
  const place = element("div", {}, element("p", { className: "ma-quiz-buttons" }, go("Show the answer (Enter)", reveal)))
  screen(
    { enter: reveal },
    kind(`Follow-up · ${chosen.level} · ${ticked.length} of ${asked.points.length} points made`),
    heading("h2", chosen.question, true),
    place,
  )
}

// ---- The report -------------------------------------------------------------------------------------------

const misses = (each) => each.missed.length + (each.held === false ? 1 : 0)
const count = (n, name) => `${n} ${name}${n === 1 ? "" : "s"}`

function finish() {
  clearInterval(round.ticking)
  document.removeEventListener("keydown", pressed, true)
  status("")
  const { done, started } = round
  const again = done.filter(misses).sort((a, b) => misses(b) - misses(a)).slice(0, REREAD)
  const followed = done.filter((each) => each.chosen)
  const made = done.reduce((sum, each) => sum + each.ticked.length, 0)
  const of = done.reduce((sum, each) => sum + each.asked.points.length, 0)
  const held = followed.filter((each) => each.held).length
  const minutes = Math.round((Date.now() - started) / 60_000)
  const total = `${count(done.length, "question")} in ${minutes} min; ${made} of ${of} points made; ${held} of ${count(followed.length, "follow-up")} held.`
  show(
    true,
    element(
      "div",
      { className: "ma-mock-report" },
      element("h2", { tabIndex: -1 }, `Mock interview, ${started.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" })}`),
      element("p", {}, done.length ? total : "No question was answered."),
      done.length ? table(done) : null,
      ...again.map(missedPoints),
    ),
    element(
      "p",
      { className: "ma-quiz-buttons" },
      done.length ? button("Print", () => print()) : null,
      go("Back to the start", leave),
    ),
  )
}

function table(done) {
  const cells = ({ asked, ticked, seconds, chosen, held }) => [
    element("th", { scope: "row" }, markup(asked.question, "span")),
    element("td", {}, `${ticked.length} of ${asked.points.length}`),
    element("td", {}, `${seconds}`),
    element("td", {}, chosen ? `${chosen.level}: ${held ? "held" : "not held"}` : "–"),
  ]
  return element(
    "table",
    { className: "ma-quiz-topics" },
    element("thead", {}, element("tr", {}, ...["Question", "Points", "Seconds", "Follow-up"].map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...done.map((each) => element("tr", {}, ...cells(each)))),
  )
}

function missedPoints({ asked, missed, chosen, held }) {
  const lines = missed.map((at) => asked.points[at])
  if (held === false) lines.push(`${chosen.question} ${chosen.answer}`)
  return element(
    "section",
    {},
    element("h3", {}, "Reread ", pageLink(asked.page, "", markup(asked.question, "span"))),
    element("ul", {}, ...lines.map((text) => markup(text, "li"))),
  )
}
