// Two repairs of what the theme leaves out, and a page's own cards. Every page reads the same without them.

// A box that scrolls sideways can be reached, and then scrolled, from the keyboard.
const seen = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollWidth > target.clientWidth) {
      const caption = target.querySelector("caption")
      target.tabIndex = 0
      target.setAttribute("role", "region")
      target.setAttribute("aria-label", caption ? caption.textContent : "Table that scrolls sideways")
    } else {
      for (const name of ["tabindex", "role", "aria-label"]) target.removeAttribute(name)
    }
  }
})

// The link to a page's cards asks them in its place.
document.addEventListener("click", (event) => {
  const link = event.target.closest(".ma-own-cards > a[data-page]")
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return
  event.preventDefault()
  const parts = ["p", "div"].map((name) => document.createElement(name))
  parts[0].id = "ma-quiz-status"
  parts[0].setAttribute("role", "status")
  parts[1].id = "ma-quiz"
  parts[1].dataset.page = link.dataset.page
  link.replaceWith(...parts)
  import(new URL("assets/quiz/quiz.js", link.href))
})

document$.subscribe(() => {
  // The search dialog has no name of its own.
  document.querySelector(".md-search[role=dialog]")?.setAttribute("aria-label", "Search")
  seen.disconnect()
  // The theme wraps tables after this; look again when it has.
  requestAnimationFrame(() => {
    for (const box of document.querySelectorAll(".md-typeset__scrollwrap")) seen.observe(box)
  })
})
