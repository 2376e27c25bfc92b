package egress

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/podspawn/podspawn/sandbox"
)

// Bridges returns the names of the sandboxes' bridges that the kernel has.
func Bridges() ([]string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	var out []string
	for _, i := range all {
		if strings.HasPrefix(i.Name, sandbox.BridgePrefix) {
			out = append(out, i.Name)
		}
	}
	return out, nil
}

func setBridges(ctx context.Context, state string) error {
	names, err := Bridges()
	errs := []error{err}
	for _, n := range names {
		errs = append(errs, command(ctx, "", "ip", "link", "set", "dev", n, state))
	}
	return errors.Join(errs...)
}

// RemoveBridge deletes a sandbox's bridge, if there is one. The engine does that
// with its network; this is for what it left when it was killed in between.
func (g *Guard) RemoveBridge(ctx context.Context, name string) error {
	if !strings.HasPrefix(name, sandbox.BridgePrefix) {
		return fmt.Errorf("%.20q is no sandbox's bridge", name)
	}
	if _, err := net.InterfaceByName(name); err != nil {
		return nil
	}
	err := command(ctx, "", "ip", "link", "delete", "dev", name, "type", "bridge")
	if _, gone := net.InterfaceByName(name); gone != nil {
		return nil
	}
	return err
}

// Pool returns the network of which sandboxes' networks are parts, and the parts
// of it that the host uses already: the resolver's, and whatever it has a route
// to. A route to more than the pool, like the default route, does not count.
func (g *Guard) Pool() (pool netip.Prefix, taken []netip.Prefix, err error) {
	f, err := os.Open("/proc/net/route")
	if err != nil {
		return netip.Prefix{}, nil, fmt.Errorf("read the host's routes: %w", err)
	}
	defer f.Close()
	taken = []netip.Prefix{netip.PrefixFrom(ResolverAddr(g.pool), 30).Masked()}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		p, ok := parseRoute(lines.Text())
		if ok && p.Bits() >= g.pool.Bits() && p.Overlaps(g.pool) {
			taken = append(taken, p)
		}
	}
	return g.pool, taken, lines.Err()
}

// parseRoute reads destination and mask of a line of /proc/net/route, which has
// them as numbers in the host's byte order.
func parseRoute(line string) (netip.Prefix, bool) {
	f := strings.Fields(line)
	if len(f) < 8 {
		return netip.Prefix{}, false
	}
	dst, err1 := hex.DecodeString(f[1])
	mask, err2 := hex.DecodeString(f[7])
	if err1 != nil || err2 != nil || len(dst) != 4 || len(mask) != 4 {
		return netip.Prefix{}, false // the heading
	}
	var a [4]byte
	binary.NativeEndian.PutUint32(a[:], binary.BigEndian.Uint32(dst))
	return netip.PrefixFrom(netip.AddrFrom4(a), bits.OnesCount32(binary.BigEndian.Uint32(mask))).Masked(), true
}
