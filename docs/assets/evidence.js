// What stands behind a number or a term, on hover, focus or tap: one popover, filled from the mark's own tooltip.
// A claim's link is copied from it, and a wrong number reported. Without this script the tooltips remain.
{
  const MARKS = "strong:is(.claim, .m, .exact, .cited), a.ma-term"
  const MEANS = { m: "measured", exact: "derived", cited: "cited", "ma-term": "glossary" }
  const STATES = {
    holds: "holds on the recording shown",
    fails: "✗ fails on the recording shown",
    "not-applicable": "not applicable on the machine recorded",
    "not-recorded": "not recorded yet",
  }
  const GAP = 6 // pixels between a mark and its evidence, and to the edge of the window
  const PATIENCE = 250 // milliseconds in which a pointer may cross that gap

  const make = (name, attributes = {}, ...content) => {
    const made = document.createElement(name)
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value)
    made.append(...content)
    return made
  }
  const button = (text, act) => {
    const made = make("button", { type: "button" }, text)
    made.addEventListener("click", act)
    return made
  }

  const box = make("div", { id: "ma-evidence", class: "ma-evidence", popover: "manual", role: "group", "aria-label": "Evidence" })
  let shown = null // the mark whose evidence is open
  let waiting = 0

  // The element that carries the tooltip and takes the focus: a cited number's link, a quoted claim's link, or itself.
  const holder = (mark) => mark.querySelector(":scope > a") ?? mark.closest("a") ?? mark
  const titled = (mark) => mark.querySelector(":scope > a[title]") ?? mark
  const kind = (mark) => Object.keys(MEANS).find((each) => mark.classList.contains(each)) ?? "claim"

  function open(mark) {
    clearTimeout(waiting)
    if (shown === mark) return
    close()
    shown = mark
    const told = titled(mark)
    told.dataset.title = told.title
    told.removeAttribute("title") // else the browser shows it beside this one
    box.replaceChildren(...content(mark, told.dataset.title))
    holder(mark).after(box) // the next stop of the Tab key
    holder(mark).setAttribute("aria-describedby", box.id)
    box.showPopover()
    place()
  }

  function close() {
    clearTimeout(waiting)
    if (!shown) return
    const told = titled(shown)
    if (told.dataset.title) told.title = told.dataset.title
    delete told.dataset.title
    holder(shown).removeAttribute("aria-describedby")
    shown = null
    if (box.isConnected) box.hidePopover()
    box.remove()
  }

  function place() {
    const lines = [...shown.getClientRects()]
    const [first, last] = [lines[0], lines.at(-1)]
    const { offsetWidth: width, offsetHeight: height } = box
    const above = last.bottom + GAP + height > innerHeight && first.top - GAP - height > 0
    const left = Math.max(GAP, Math.min(last.left, document.documentElement.clientWidth - width - GAP))
    box.style.left = `${left + scrollX}px`
    box.style.top = `${(above ? first.top - GAP - height : last.bottom + GAP) + scrollY}px`
  }

  // ---- What it says

  function content(mark, title) {
    const what = kind(mark)
    if (what === "ma-term") return term(mark)
    if (what === "claim") return claim(mark, title)
    const [, means, text] = title.match(/^(\w+): (.*)$/s) ?? [null, MEANS[what], title]
    const rows = [[means, what === "cited" ? text : make("code", {}, text)]]
    const recorded = what === "m" && !mark.closest("a") && recordedValue(text)
    if (recorded) rows.push(["recorded", recorded])
    return [list(rows), actions(mark, title)]
  }

  function claim(mark, title) {
    const [, means, check, recorded, state] = title.match(/^(.*?); checked: (.*); recorded: (.*); ([\w-]+)$/s) ?? []
    if (!check) return [make("p", {}, title), actions(mark, title)]
    const { machine, versions } = recordedOn(mark)
    const rows = [
      [make("span", { class: "ma-class" }, mark.dataset.class), means],
      ["checked", make("code", {}, check)],
      ["recorded", make("code", {}, recorded || "nothing yet")],
      ["state", STATES[state] ?? state],
    ]
    if (machine) rows.push(["machine", `${machine}; ${versions}`])
    return [list(rows), actions(mark, title)]
  }

  function term(mark) {
    const text = make("p", {}, "…")
    const found = definition(new URL(mark.href))
    found.then((means) => {
      text.textContent = means
      if (shown === mark) place()
    })
    return [text]
  }

  const list = (rows) =>
    make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]))

  // A measured name's value as its table on this page has it.
  function recordedValue(name) {
    const row = [...document.querySelectorAll(".ma-values th")].find((head) => head.textContent === name)
    return row?.nextElementSibling?.textContent
  }

  // The primary recording's machine and versions, from the foot of the page; a quoted claim's stand on its own page.
  function recordedOn(mark) {
    const line = mark.closest("a") ? "" : document.querySelector(".ma-recorded li")?.textContent ?? ""
    const [, machine, rest] = line.match(/^(.*?), (\d{4}-.*?), [\d,.]+ s\b/) ?? []
    return { machine: machine ?? "", versions: rest ?? "" }
  }

  const glossary = new Map()

  async function definition(address) {
    const file = address.origin + address.pathname
    if (!glossary.has(file)) {
      const read = fetch(file).then((answer) => answer.text())
      glossary.set(file, read.then((text) => new DOMParser().parseFromString(text, "text/html")))
    }
    try {
      const entry = (await glossary.get(file)).getElementById(address.hash.slice(1))
      return entry.nextElementSibling.firstChild.textContent.trim()
    } catch {
      glossary.delete(file)
      return "The glossary could not be loaded; the link leads to it."
    }
  }

  // ---- What can be done with it

  function actions(mark, title) {
    const row = make("p", { class: "ma-actions" })
    const address = linkOf(mark)
    if (address) row.append(button("Copy link", (event) => copy(address, event.target)))
    row.append(button("Report a wrong number", () => report(mark, title)))
    return row
  }

  // A quoted claim's link leads to where it stands.
  function linkOf(mark) {
    if (kind(mark) !== "claim") return ""
    const quoted = mark.closest("a")
    if (quoted) return quoted.href
    return mark.id ? `${location.href.split(/[?#]/)[0]}#${mark.id}` : ""
  }

  async function copy(text, pressed) {
    const label = pressed.textContent
    try {
      await navigator.clipboard.writeText(text)
      pressed.textContent = "Copied"
    } catch {
      const hash = text.includes("#") && text.startsWith(location.origin) && new URL(text).hash
      if (hash) history.replaceState(null, "", hash)
      pressed.textContent = hash ? "It is in the address bar" : "Select the text to copy it"
    }
    setTimeout(() => (pressed.textContent = label), 2000)
  }

  function report(mark, title) {
    const { machine, versions } = recordedOn(mark)
    const fields = {
      page: location.href.split(/[?#]/)[0],
      claim: `${linkOf(mark).split("#")[1] ?? ""} “${mark.textContent}” (${title})`.trim(),
      machine: machine || "as named at the foot of the page",
      versions: versions || "as named at the foot of the page",
    }
    const issues = document.querySelector("meta[name=ma-issues]")?.content
    if (!issues) return reportText(fields)
    const address = new URL(issues)
    for (const [name, value] of Object.entries({ template: "wrong-number.yml", ...fields })) {
      address.searchParams.set(name, value)
    }
    window.open(address, "_blank", "noopener")
  }

  // No place to report to is configured: the same text, to be sent by whatever way there is.
  function reportText(fields) {
    const text = [...Object.entries(fields), ["seen", "(what you saw instead, and where)"]]
      .map(([name, value]) => `${name}: ${value}`)
      .join("\n")
    const area = make("textarea", { readonly: "", rows: 10, "aria-label": "Report" })
    area.value = text
    const dialog = make("dialog", { class: "ma-report", "aria-labelledby": "ma-report-title" })
    const bar = make("p", { class: "ma-actions" })
    bar.append(button("Copy", (event) => copy(text, event.target)), button("Close", () => dialog.close()))
    dialog.append(make("h2", { id: "ma-report-title" }, "Report a wrong number"), area, bar)
    const back = holder(shown ?? document.body)
    dialog.addEventListener("close", () => {
      dialog.remove()
      back.focus()
    })
    close()
    document.querySelector(".md-content").append(dialog)
    dialog.showModal()
  }

  // ---- When

  const markAt = (target) => target instanceof Element && (target.closest(MARKS) ?? target.querySelector?.(`:scope > ${MARKS}`))
  const inside = (target) => target instanceof Node && (box.contains(target) || (shown && holder(shown).contains(target)))
  const leave = () => {
    clearTimeout(waiting)
    waiting = setTimeout(() => !inside(document.activeElement) && close(), PATIENCE)
  }

  document.addEventListener("pointerover", (event) => {
    if (event.pointerType === "touch") return
    const mark = event.target.closest(MARKS)
    if (mark?.closest(".md-content") && mark !== shown) {
      clearTimeout(waiting)
      waiting = setTimeout(() => open(mark), shown ? 0 : PATIENCE / 2)
    } else if (inside(event.target) || mark) clearTimeout(waiting)
    else leave()
  })

  document.addEventListener("focusin", (event) => {
    if (inside(event.target)) return
    const link = event.target.closest("a, strong")
    const mark = link?.closest(".md-content") && markAt(link)
    if (mark && event.target.matches(":focus-visible")) open(mark)
    else if (shown) close()
  })

  // A tap opens, and a tap elsewhere closes; links stay links.
  document.addEventListener("click", (event) => {
    const mark = event.target.closest(MARKS)
    if (mark?.closest(".md-content") && !event.target.closest("a")) open(mark)
    else if (shown && !inside(event.target)) close()
  })

  document.addEventListener("keydown", (event) => {
    if (!shown) return
    if (event.key === "Escape") {
      const back = box.contains(document.activeElement) && holder(shown)
      close()
      back?.focus?.()
      if (back) close()
    } else if (/^Arrow(Left|Right)$/.test(event.key) && document.activeElement === holder(shown)) step(event)
  })

  // From a claim the arrow keys go on to every number, so that the Tab key need not stop at each.
  function step(event) {
    const marks = [...document.querySelectorAll(`.md-content :is(${MARKS})`)].filter((mark) => mark.checkVisibility())
    const next = marks[marks.indexOf(shown) + (event.key === "ArrowRight" ? 1 : -1)]
    if (!next) return
    event.preventDefault()
    const stop = holder(next)
    if (stop === next && !stop.hasAttribute("tabindex")) stop.tabIndex = -1
    stop.focus()
    open(next)
  }

  addEventListener("resize", () => shown && place())
  addEventListener("beforeprint", close)

  document$.subscribe(() => {
    close()
    for (const claim of document.querySelectorAll(".md-content strong.claim")) {
      if (!claim.closest("a")) claim.tabIndex = 0
    }
  })
}
