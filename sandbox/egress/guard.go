package egress

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/podspawn/podspawn/sandbox"
)

const (
	// keepEvery is how often the kernel is asked whether the rules are there.
	keepEvery    = 250 * time.Millisecond
	commandLimit = 10 * time.Second
	// label marks the resolver's address on the loopback interface as ours.
	label = "lo:podspawn"
)

// errNoRules means that the kernel's rules are not, or not exactly, ours.
var errNoRules = errors.New("the table " + table + " is missing or was changed")

// errDown means that the bridges were taken down and are not up yet.
var errDown = errors.New("sandboxes' bridges are down")

// Guard keeps the rules in place. It is safe for concurrent use.
type Guard struct {
	pool netip.Prefix
	log  *slog.Logger

	mu    sync.Mutex // guards what follows, and makes Ensure one at a time
	print uint64     // of the table as we made it; 0 before
	down  bool       // bridges were taken down for want of rules
}

// New returns a Guard for bridges whose networks are parts of pool, which is a
// private IPv4 network from /8 to /24. It does nothing yet.
func New(pool netip.Prefix, log *slog.Logger) (*Guard, error) {
	if err := CheckPool(pool); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Guard{pool: pool.Masked(), log: log}, nil
}

// CheckPool returns an error unless networks of sandboxes can be made of pool.
func CheckPool(pool netip.Prefix) error {
	if !pool.IsValid() || !pool.Addr().Is4() || !pool.Addr().IsPrivate() || pool.Bits() < 8 || pool.Bits() > 24 {
		return fmt.Errorf("%s is no private IPv4 network from /8 to /24", pool)
	}
	return nil
}

// Check returns nil while the rules are in the kernel exactly as Ensure put them
// there, the resolver's address is on the host and the bridges are not down. It takes about a millisecond.
func (g *Guard) Check() error {
	g.mu.Lock()
	want, down := g.print, g.down
	g.mu.Unlock()
	err := g.compare(want)
	if down && err == nil {
		err = errDown
	}
	if err == nil {
		return nil
	}
	return &sandbox.Error{
		Kind: sandbox.KindUnavailable, Err: err, Msg: "the firewall rules for sandboxes' networks are missing",
		Hint: "the daemon puts them back, which takes nft from nftables; podspawn doctor says whether it could",
	}
}

func (g *Guard) compare(want uint64) error {
	have, err := fingerprint()
	if err != nil {
		return err
	}
	if want == 0 || have != want {
		return errNoRules
	}
	return hasResolverAddr(g.pool)
}

// Ensure puts rules and resolver's address in place unless they are. The first
// call always does, since rules of an earlier process may be other ones.
func (g *Guard) Ensure(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.compare(g.print) != nil {
		if err := g.install(ctx); err != nil {
			// Fail closed: a network without rules is worse than none.
			g.down = true
			return errors.Join(err, setBridges(ctx, "down"))
		}
	}
	if g.down {
		if err := setBridges(ctx, "up"); err != nil {
			return err
		}
		g.down = false
	}
	return nil
}

func (g *Guard) install(ctx context.Context) error {
	if hasResolverAddr(g.pool) != nil {
		// Not in the table's transaction: without it names don't resolve, no more.
		_ = command(ctx, "", "ip", "-4", "addr", "flush", "dev", "lo", "label", label) // there may be none
		err := command(ctx, "", "ip", "addr", "add", ResolverAddr(g.pool).String()+"/32", "dev", "lo", "label", label)
		if err != nil {
			return fmt.Errorf("the resolver's address: %w", err)
		}
		if err := command(ctx, "", "ip", "link", "set", "lo", "up"); err != nil {
			return err
		}
	}
	if err := command(ctx, rules(g.pool), "nft", "-f", "-"); err != nil {
		return fmt.Errorf("the firewall rules: %w", err)
	}
	print, err := fingerprint()
	if err != nil {
		return err
	}
	if print == 0 {
		return errNoRules
	}
	g.print = print
	return nil
}

// Keep puts back what something removed, until ctx ends.
func (g *Guard) Keep(ctx context.Context) {
	t := time.NewTicker(keepEvery)
	defer t.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if g.Check() == nil {
			said = ""
			continue
		}
		err := g.Ensure(ctx)
		switch {
		case ctx.Err() != nil:
		case err == nil:
			g.log.WarnContext(ctx, "the firewall rules for sandboxes' networks were missing", "restored", true)
		case err.Error() != said: // once, not four times a second
			said = err.Error()
			g.log.ErrorContext(ctx, "no firewall rules for sandboxes' networks; their bridges are down", "err", err)
		}
	}
}

// Present returns nil when there are rules at all: for whoever did not put them there.
func Present() error {
	print, err := fingerprint()
	if err == nil && print == 0 {
		err = errNoRules
	}
	return err
}

// fingerprint hashes what identifies the table in the kernel; 0 is no table. A
// rule that was replaced has another handle; a table that was made anew in the
// same form has other expressions.
func fingerprint() (uint64, error) {
	c, err := nftables.New(nftables.AsLasting()) // one socket for all questions
	if err != nil {
		return 0, fmt.Errorf("nftables: %w", err)
	}
	defer func() { _ = c.CloseLasting() }() // nothing was written
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return 0, fmt.Errorf("list firewall tables: %w", err)
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == table })
	if i < 0 {
		return 0, nil
	}
	all, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return 0, fmt.Errorf("list firewall chains: %w", err)
	}
	h := fnv.New64a()
	fmt.Fprintln(h, tables[i].Flags) // "dormant" would switch all of it off
	n := 0
	for _, ch := range all {
		if ch.Table.Name != table {
			continue
		}
		rs, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return 0, fmt.Errorf("read the firewall rules: %w", err)
		}
		fmt.Fprint(h, ch.Name, ch.Type)
		if ch.Hooknum != nil && ch.Priority != nil {
			fmt.Fprint(h, " ", *ch.Hooknum, *ch.Priority)
		}
		for _, r := range rs {
			fmt.Fprint(h, " ", r.Handle)
			for _, e := range r.Exprs {
				// What the library can't write it could not read either, completely.
				b, _ := expr.Marshal(byte(nftables.TableFamilyINet), e)
				fmt.Fprintf(h, "%T%x", e, b)
			}
			n++
		}
		fmt.Fprintln(h)
	}
	if n == 0 {
		return 0, nil
	}
	sets, err := c.GetSets(tables[i])
	if err != nil {
		return 0, fmt.Errorf("read the firewall's sets: %w", err)
	}
	for _, set := range sets {
		fmt.Fprintln(h, set.Name, set.ID)
		if !set.Constant {
			continue // the notes of what was refused
		}
		elements, err := c.GetSetElements(set)
		if err != nil {
			return 0, fmt.Errorf("read the firewall's sets: %w", err)
		}
		for _, e := range elements {
			fmt.Fprintf(h, " %x%t", e.Key, e.IntervalEnd)
		}
	}
	return max(h.Sum64(), 1), nil
}

func hasResolverAddr(pool netip.Prefix) error {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	addrs, err := lo.Addrs()
	if err != nil {
		return err
	}
	want := ResolverAddr(pool).String() + "/32"
	if !slices.ContainsFunc(addrs, func(a net.Addr) bool { return a.String() == want }) {
		return errors.New("the resolver's address is not on the loopback interface")
	}
	return nil
}

// Remove takes rules and address away. It is idempotent.
func Remove(ctx context.Context) error {
	_ = command(ctx, "", "ip", "-4", "addr", "flush", "dev", "lo", "label", label) // there may be none
	return command(ctx, "table inet "+table+"\ndelete table inet "+table+"\n", "nft", "-f", "-")
}

// command runs nft or iproute2. Arguments are constants, numbers and names that
// begin with our prefix.
func command(ctx context.Context, stdin, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %.300s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
