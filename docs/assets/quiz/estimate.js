// Numbers to derive, from fresh inputs each time: the twin of measured/estimates.py.

const CLOSE = Math.log2(1.1) // a guess this near is right
const FAR = 1.01 // a guess beyond a factor of two is wrong; rounding forgiven
const SAME_MISTAKE = Math.log2(1.03) // how near a guess lies to the mistake that explains it
const SAME_UNIT = Math.log2(1.01) // GB and GiB lie close together
const [AGAIN, HARD, GOOD] = [1, 2, 3]
const NUMBER = /^([-−+]?(?:\d{1,3}(?:[, _]\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?)\s*(\D.*)?$/i

export class GuessError extends Error {}

// Tommy Ettinger's mulberry32: numbers from zero up to one.
function mulberry32(state) {
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296
  }
}

// What every name stands for, and what the question says of it.
export function draw(estimate, seed) {
  const dice = mulberry32(seed)
  const drawn = { texts: {}, values: { ...estimate.fixed } }
  for (const choices of estimate.givens) {
    const choice = choices[Math.floor(dice() * choices.length)]
    Object.assign(drawn.texts, choice.texts)
    Object.assign(drawn.values, choice.values)
  }
  return drawn
}

export const question = (front, drawn) => front.replace(/\{(\w+)\}/g, (_, name) => `<strong>${drawn.texts[name]}</strong>`)

const OPERATORS = {
  "+": (a, b) => a + b,
  "-": (a, b) => a - b,
  "*": (a, b) => a * b,
  "/": (a, b) => a / b,
  "//": (a, b) => Math.floor(a / b),
  "**": (a, b) => a ** b,
  min: (a, b) => Math.min(a, b),
  max: (a, b) => Math.max(a, b),
  neg: (a) => -a,
  sqrt: Math.sqrt,
  log2: Math.log2,
  ceil: Math.ceil,
  floor: Math.floor,
}

// A program's steps on a stack.
export function compute(program, values) {
  const stack = []
  for (const each of program) {
    if (typeof each === "number") stack.push(each)
    else if (each[0] === "$") stack.push(values[each.slice(1)])
    else {
      const operator = OPERATORS[each]
      stack.push(operator(...stack.splice(-operator.length)))
    }
  }
  return stack[0]
}

// A typed guess in the base unit, and the unit it was typed in.
export function guessed(text, units, unitless) {
  const match = NUMBER.exec(text.trim())
  if (!match) throw new GuessError(`write a number and its unit, for example ${example(units)}`)
  let unit = (match[2] ?? "").trim()
  if (!(unit in units)) unit = Object.keys(units).find((known) => known.toLowerCase() === unit.toLowerCase()) ?? unit
  if (!(unit in units) && (unit || !unitless)) {
    const said = unit ? `'${unit}' is no unit of this answer` : "the unit is missing"
    throw new GuessError(`${said}: ${Object.keys(units).join(", ")}`)
  }
  const number = Number(match[1].replace(/[,_ ]/g, "").replace("−", "-"))
  if (!(number > 0)) throw new GuessError("a guess is above zero: how far off a factor is has no meaning at or below it")
  return [number * (units[unit] ?? 1), unit]
}

export const example = (units) => ["1.5", ...Object.keys(units).slice(-1)].join(" ")

// How near a guess came, what that is worth, and the mistake that explains it.
export function grade(estimate, values, guess, unit, units) {
  const right = compute(estimate.program, values)
  const error = Math.log2(guess / right)
  let best = Math.abs(error)
  let told = ""
  for (const [wrong, text, near] of wrongWays(estimate, values, right, unit, units)) {
    const apart = wrong > 0 ? Math.abs(Math.log2(guess / wrong)) : Infinity
    if (apart < Math.min(best, near)) [best, told] = [apart, text]
  }
  const size = Math.abs(error)
  if (told) return { error, rating: size <= CLOSE ? HARD : AGAIN, mistake: told }
  return { error, rating: size <= CLOSE ? GOOD : size <= FAR ? HARD : AGAIN, mistake: "" }
}

function* wrongWays(estimate, values, right, unit, units) {
  for (const mistake of estimate.mistakes) yield [compute(mistake.program, values), mistake.told, SAME_MISTAKE]
  if (!estimate.dimension.includes("bytes")) return
  const twin = unit.includes("iB") ? unit.replace("iB", "B").replace("K", "k") : unit.replace(/(?<=[kMGT])B/, "iB").replace("k", "K")
  if (twin in units && twin !== unit) yield [(right * units[unit]) / units[twin], `That is its number of ${twin}, and you wrote ${unit}.`, SAME_UNIT]
  yield [right * 8, "Those are bits: a byte has more than one.", SAME_UNIT]
  yield [right / 8, "You took bytes for bits.", SAME_UNIT]
}

// An answer in the unit that suits it, three digits; bytes in both kinds of unit.
export function shown(value, dimension, units) {
  if (!dimension.includes("bytes")) return inUnit(value, units) || digits(value)
  const some = (binary) => Object.fromEntries(Object.entries(units).filter(([unit]) => unit.includes("iB") === binary))
  const decimal = inUnit(value, some(false))
  const binary = inUnit(value, some(true))
  return binary && dimension === "bytes" ? `${decimal} (${binary})` : decimal
}

function inUnit(value, units) {
  const known = Object.entries(units).sort((a, b) => a[1] - b[1])
  const fitting = known.filter(([, factor]) => value >= factor)
  if (!known.length || (!fitting.length && known.length > 1 && known[0][1] >= 1024)) return ""
  const [unit, factor] = fitting.at(-1) ?? known[0]
  return `${digits(value / factor)}${unit === "×" ? "" : " "}${unit}`
}

// Three digits, whole from a hundred on, with separators of thousands.
export function digits(value) {
  if (value >= 100 || Number.isInteger(value)) return Math.floor(value + 0.5).toLocaleString("en-US")
  const text = value.toFixed(2 - Math.floor(Math.log10(value)))
  return text.replace(/0+$/, "").replace(/\.$/, "")
}

export const off = (error) => `${digits(2 ** Math.abs(error))}× too ${error > 0 ? "large" : "small"}`

// The formula in words, and the same with its numbers and what comes out.
export function solution(estimate, values, units) {
  const result = shown(compute(estimate.program, values), estimate.dimension, units)
  return [estimate.formula, `${estimate.infix.replace(/\{(\w+)\}/g, (_, name) => digits(values[name]))} = <strong>${result}</strong>`]
}
