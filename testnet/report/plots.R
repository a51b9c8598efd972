# Draws pictures from arrivals.csv in the same directory into plots.pdf:
#
#     Rscript plots.R
#
# Needs R 4.0 and no packages. Each line of arrivals.csv is a transaction at a
# node other than its origin; delay_ms and overhead_ms are empty if it did not
# arrive, which counts as infinite here.

a <- read.csv("arrivals.csv")
a$delay_ms[is.na(a$delay_ms)] <- Inf
a$overhead_ms[is.na(a$overhead_ms)] <- Inf
modes <- unique(a$mode)
colours <- setNames(rep_len(palette.colors(8, "Okabe-Ito"), length(modes)), modes)

# cdfs draws the share of values up to x for each mode; values is a list by mode.
cdfs <- function(values, title, label) {
  finite <- unlist(values)
  finite <- finite[is.finite(finite) & finite > 0]
  if (length(finite) == 0) return(invisible())
  x <- exp(seq(log(min(finite)), log(max(finite)), length.out = 1000))
  plot(NA, xlim = range(x), ylim = c(0, 1), log = "x", main = title, xlab = label, ylab = "share")
  grid()
  for (m in names(values)) {
    lines(x, findInterval(x, sort(values[[m]])) / length(values[[m]]), col = colours[[m]], lwd = 2)
  }
  legend("bottomright", legend = names(values), col = colours[names(values)], lwd = 2, bg = "white")
}

# reached is the delay until a share of the nodes has each transaction.
reached <- function(d, share) {
  tapply(d$delay_ms, paste(d$round, d$seed, d$tx), function(x) sort(x)[ceiling(share * length(x))])
}

pdf("plots.pdf", width = 10, height = 7)
cdfs(split(a$delay_ms, a$mode), "Delay of each transaction at each node (left is better)", "delay, ms")
cdfs(split(a$overhead_ms, a$mode), "Delay above the BGP path with serialisation (left is better)", "overhead, ms")
cdfs(split(a$delay_ms - a$floor_physical_ms, a$mode), "Delay above the physically shortest path (left is better)", "overhead, ms")
cdfs(lapply(split(a, a$mode), reached, 0.95), "Delay until 95 % of the nodes have a transaction (left is better)", "delay, ms")

# Medians by size of the transaction and by AS of the node.
size <- cut(a$bytes, c(0, 256, 1168, 4096, 16384, Inf))
for (by in list(list(size, "bytes of the transaction"), list(a$as, "AS of the node"), list(a$class, "access class of the node"))) {
  m <- tapply(a$overhead_ms, list(a$mode, by[[1]]), median)
  m[!is.finite(m)] <- NA
  if (all(is.na(m))) next
  barplot(m, beside = TRUE, col = colours[rownames(m)], main = "Median overhead (lower is better)",
          xlab = by[[2]], ylab = "overhead, ms", legend.text = rownames(m))
}
invisible(dev.off())

print(do.call(rbind, lapply(split(a, a$mode), function(d) data.frame(
  mode = d$mode[1], pairs = nrow(d), delivered = mean(is.finite(d$delay_ms)),
  p50_ms = quantile(d$delay_ms, 0.5, type = 1), p99_ms = quantile(d$delay_ms, 0.99, type = 1),
  overhead_p50_ms = quantile(d$overhead_ms, 0.5, type = 1)))), row.names = FALSE)
