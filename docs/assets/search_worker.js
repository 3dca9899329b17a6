// The theme's search, mended: lunr tells the nodes of its list of words apart by a text in which letters and numbers of
// nodes run together, so that words with digits can be taken for others and a search ends in an error. The theme's own
// worker is named behind the "#".
importScripts(`javascripts/workers/${location.hash.slice(1)}`)

if (self.lunr) {
  lunr.TokenSet.prototype.toString = function () {
    const edges = Object.keys(this.edges).sort().map(label => `${label}${this.edges[label].id};`)
    return `${this.final ? 1 : 0}${edges.join("")}`
  }
}
