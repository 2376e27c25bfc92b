package sshhook

import (
	"context"
	"fmt"
	"time"

	"github.com/podspawn/podspawn/sandbox/localapi"
)

// warnBefore is when a terminal is told that its sandbox ends: so long before.
var warnBefore = [...]time.Duration{10 * time.Minute, time.Minute}

// warn tells the terminal 10 minutes and 1 minute before the sandbox ends, until
// ctx does. The end may be moved meanwhile (podspawn extend), so the daemon is
// asked just before each warning; while there is none, what was known counts.
func (h *Hook) warn(ctx context.Context, end time.Time) {
	for _, before := range warnBefore {
		wait := time.Until(end.Add(-before))
		if wait <= 0 {
			continue // it had less from the beginning
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if moved := h.deadline(ctx, end); moved.After(end.Add(time.Second)) {
			h.warn(ctx, moved)
			return
		}
		h.complain("\r\n" + warning(end, before) + "\r") // the terminal is raw
	}
}

// deadline asks the daemon for the present end of the sandbox.
func (h *Hook) deadline(ctx context.Context, known time.Time) time.Time {
	ctx, cancel := h.withTimeout(ctx)
	defer cancel()
	var resp localapi.ChannelResponse
	err := h.Daemon.Call(ctx, localapi.OpChannel, localapi.Auth{}, localapi.ChannelRequest{Do: localapi.ChannelAsk}, &resp)
	if err != nil || resp.ExpiresAt.IsZero() {
		return known
	}
	return resp.ExpiresAt
}

func warning(end time.Time, before time.Duration) string {
	left := "1 minute"
	if before > time.Minute {
		left = fmt.Sprintf("%d minutes", int(before.Minutes()))
	}
	return fmt.Sprintf("podspawn: this sandbox ends in %s, at %s UTC; podspawn extend gives it more time", left, end.UTC().Format("15:04"))
}
