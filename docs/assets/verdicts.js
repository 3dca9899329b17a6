// Chooses statements by verdict and topic. Without it the page shows every statement; the address keeps the choice.

import { element } from "./quiz/elements.js"

const ALL = "all"
const box = document.getElementById("ma-filter")
const groups = [...document.querySelectorAll(".ma-said-group")]
const rows = groups.flatMap((group) => [...group.querySelectorAll("li[data-verdict]")])
const count = element("p", { className: "ma-filter-count" })
count.setAttribute("role", "status")

// What a row can be chosen by: its name in the address and in the row's data, and what stands in the row for it.
const FILTERS = [
  { name: "verdict", title: "Verdict", word: (row) => row.querySelector(".ma-verdict").textContent },
  { name: "topic", title: "Topic", word: (row) => row.querySelector(".ma-where").textContent.split(" · ")[0] },
]

function choices({ name, title, word }) {
  const words = new Map([[ALL, "All"], ...rows.map((row) => [row.dataset[name], word(row)])])
  const asked = new URLSearchParams(location.search).get(name)
  const radios = [...words].map(([value, text]) => {
    const radio = element("input", { type: "radio", name, value, checked: value === (words.has(asked) ? asked : ALL) })
    return element("label", {}, radio, element("span", {}, text))
  })
  return element("fieldset", {}, element("legend", {}, title), ...radios)
}

function apply() {
  const chosen = FILTERS.map(({ name }) => [name, box.querySelector(`input[name=${name}]:checked`).value])
  for (const row of rows) row.hidden = !chosen.every(([name, value]) => value === ALL || row.dataset[name] === value)
  for (const group of groups) group.hidden = !group.querySelector("li[data-verdict]:not([hidden])")
  const shown = rows.filter((row) => !row.hidden).length
  count.textContent = shown ? `${shown} of ${rows.length} statements` : "No statement has this verdict in this topic."
  const address = new URL(location.href)
  for (const [name, value] of chosen) {
    if (value === ALL) address.searchParams.delete(name)
    else address.searchParams.set(name, value)
  }
  if (address.href !== location.href) history.replaceState(null, "", address)
}

box.append(...FILTERS.map(choices), count)
box.addEventListener("change", apply)
apply()
