package egress

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"

	"github.com/podspawn/podspawn/sandbox"
)

// auditEvery is how often the kernel's notes are read.
const auditEvery = time.Second

// Denial is a refused connection.
type Denial struct {
	Bridge   string
	From     netip.Addr
	To       netip.AddrPort // port 0 where the protocol has none
	Protocol uint8
}

// keyLen is a key of the larger set: the fields, each filled up to four bytes.
const keyLen = 16 + 4 + 4 + 4 + 4

// Denied returns what the kernel refused within the last two minutes.
func Denied() ([]Denial, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	t := &nftables.Table{Name: table, Family: nftables.TableFamilyINet}
	var out []Denial
	for _, name := range []string{deniedSet, otherSet} {
		elements, err := c.GetSetElements(&nftables.Set{Table: t, Name: name})
		if err != nil {
			return nil, fmt.Errorf("read the refused connections: %w", err)
		}
		for _, e := range elements {
			if d, ok := parseKey(e.Key); ok {
				out = append(out, d)
			}
		}
	}
	return out, nil
}

// parseKey reads the key of an element; the kernel wrote it.
func parseKey(k []byte) (Denial, bool) {
	if len(k) < keyLen-4 {
		return Denial{}, false
	}
	name, _, _ := bytes.Cut(k[:16], []byte{0})
	d := Denial{Bridge: string(name), From: netip.AddrFrom4([4]byte(k[16:20])), Protocol: k[24]}
	port := uint16(0)
	if len(k) >= keyLen {
		port = binary.BigEndian.Uint16(k[28:30])
	}
	d.To = netip.AddrPortFrom(netip.AddrFrom4([4]byte(k[20:24])), port)
	return d, strings.HasPrefix(d.Bridge, sandbox.BridgePrefix)
}

// protocol names a transport protocol.
func (d Denial) protocol() string {
	switch d.Protocol {
	case 1:
		return "icmp"
	case 6:
		return "tcp"
	case 17:
		return "udp"
	default:
		return "ip/" + strconv.Itoa(int(d.Protocol))
	}
}

func (d Denial) destination() string {
	if d.To.Port() == 0 && d.Protocol != 6 && d.Protocol != 17 {
		return d.To.Addr().String()
	}
	return d.To.String()
}

// Recorder is what Audit needs of the store.
type Recorder interface {
	List(ctx context.Context, f sandbox.Filter) ([]sandbox.Sandbox, error)
	Append(ctx context.Context, ev ...sandbox.Event) error
}

// Audit writes an event for each refused destination of a sandbox, at most once
// in two minutes, until ctx ends. The kernel's rate bounds how many there are; an
// attempt beyond it is refused just the same.
func Audit(ctx context.Context, r Recorder, log *slog.Logger) {
	t := time.NewTicker(auditEvery)
	defer t.Stop()
	seen := map[Denial]bool{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		all, err := Denied()
		if err != nil {
			continue // Keep says so: the table is missing
		}
		now := make(map[Denial]bool, len(all))
		var fresh []Denial
		for _, d := range all {
			if now[d] = true; !seen[d] {
				fresh = append(fresh, d)
			}
		}
		if len(fresh) > 0 {
			if err := record(ctx, r, fresh, time.Now()); err != nil {
				if ctx.Err() == nil {
					log.ErrorContext(ctx, "refused connections not recorded", "err", err)
				}
				continue // and tried again
			}
		}
		seen = now
	}
}

func record(ctx context.Context, r Recorder, ds []Denial, now time.Time) error {
	rows, err := r.List(ctx, sandbox.Filter{Living: true, Limit: sandbox.MaxList})
	if err != nil {
		return err
	}
	byBridge := make(map[string]sandbox.Sandbox, len(rows))
	for _, s := range rows {
		byBridge[s.ID.Bridge()] = s
	}
	evs := make([]sandbox.Event, 0, len(ds))
	for _, d := range ds {
		s, ok := byBridge[d.Bridge]
		if !ok {
			continue // it ended since
		}
		evs = append(evs, sandbox.Event{
			Time: now, Event: sandbox.EventEgressDenied, Tenant: s.Tenant, Subject: s.Subject, Actor: sandbox.ActorSystem,
			Sandbox: s.ID, SpecDigest: s.Digest, Source: d.From.String(),
			Detail: map[string]string{"destination": d.destination(), "protocol": d.protocol()},
		})
	}
	if len(evs) == 0 {
		return nil
	}
	return r.Append(ctx, evs...)
}
