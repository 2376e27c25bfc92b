package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

// logCounts logs, on each SIGUSR1 until ctx ends, what a leak would show in.
func logCounts(ctx context.Context, log *slog.Logger) {
	asked := make(chan os.Signal, 1) // one answer is enough
	signal.Notify(asked, syscall.SIGUSR1)
	defer signal.Stop(asked)
	for {
		select {
		case <-ctx.Done():
			return
		case <-asked:
		}
		fds, err := os.ReadDir("/proc/self/fd")
		runtime.GC() // what is left then is held by somebody
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		log.InfoContext(ctx, "counts", "goroutines", runtime.NumGoroutine(), "descriptors", len(fds), "heap", m.HeapAlloc, "err", err)
	}
}
