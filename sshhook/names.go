package sshhook

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// Names are resolved in the sandbox, not on the host. But sshd resolves what it
// connects to in its own process, so in the portal it is given a resolver, the
// relay, that answers every name with an address which stands for it. When sshd
// then connects to that address, the relay has the guest dial the name.

// nameNet is where those addresses are from: set aside for benchmarks (RFC 2544),
// so that nobody has one.
var nameNet = netip.MustParsePrefix("198.18.0.0/15")

// maxNames bounds the names that are known at once. The oldest is forgotten
// first; sshd connects right after it has asked.
const maxNames = 4096

// names stands addresses for names. It is safe for concurrent use.
type names struct {
	mu     sync.Mutex // guards what follows
	byName map[string]uint32
	byAddr [maxNames]string // by the address's place in nameNet
	next   uint32
}

// addr returns the address that stands for a name.
func (n *names) addr(name string) netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	i, ok := n.byName[name]
	if !ok {
		i = n.next
		n.next = (n.next + 1) % maxNames
		if n.byName == nil {
			n.byName = map[string]uint32{}
		}
		delete(n.byName, n.byAddr[i])
		n.byName[name], n.byAddr[i] = i, name
	}
	first := nameNet.Addr().As4()
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(first[:])+i+1)))
}

// name returns what an address stands for, "" for nothing.
func (n *names) name(a netip.Addr) string {
	if !a.Is4() || !nameNet.Contains(a) {
		return ""
	}
	b, first := a.As4(), nameNet.Addr().As4()
	i := binary.BigEndian.Uint32(b[:]) - binary.BigEndian.Uint32(first[:]) - 1
	n.mu.Lock()
	defer n.mu.Unlock()
	if i >= maxNames {
		return ""
	}
	return n.byAddr[i]
}

// serve answers queries until the process ends.
func (n *names) serve(ctx context.Context, c net.PacketConn) {
	buf := make([]byte, 1500)
	for ctx.Err() == nil {
		size, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(50 * time.Millisecond) // an earlier answer that found nobody, or out of memory
			continue
		}
		if a := n.answer(buf[:size]); a != nil {
			_, _ = c.WriteTo(a, from) // who asked asks again
		}
	}
}

// Of RFC 1035.
const (
	dnsHeader   = 12
	dnsResponse = 1 << 15
	dnsOpcode   = 0xf << 11
	dnsRD       = 1 << 8
	dnsRA       = 1 << 7
	dnsA        = 1
	dnsInternet = 1
	maxDNSName  = 253
)

// answer answers a query with one question, or returns nil. An A question gets
// an address; others about the same name get none, so that nobody waits for more.
func (n *names) answer(query []byte) []byte {
	if len(query) < dnsHeader {
		return nil
	}
	flags := binary.BigEndian.Uint16(query[2:])
	if flags&(dnsResponse|dnsOpcode) != 0 || binary.BigEndian.Uint16(query[4:]) != 1 {
		return nil
	}
	name, end := questionName(query)
	if name == "" || len(query) < end+4 {
		return nil
	}
	kind, class := binary.BigEndian.Uint16(query[end:]), binary.BigEndian.Uint16(query[end+2:])
	a := append([]byte(nil), query[:end+4]...)
	binary.BigEndian.PutUint16(a[2:], dnsResponse|flags&dnsRD|dnsRA)
	clear(a[6:dnsHeader]) // counts of what follows the question, and we leave out EDNS
	if kind == dnsA && class == dnsInternet {
		a[7] = 1
		a = append(a, 0xc0, dnsHeader, 0, dnsA, 0, dnsInternet, 0, 0, 0, 0, 0, 4) // the question's name, kept for no time
		ip := n.addr(name).As4()
		a = append(a, ip[:]...)
	}
	return a
}

// questionName returns the name in the first question and where it ends. "" is
// none, or one that is no host's.
func questionName(b []byte) (string, int) {
	var labels []string
	at, size := dnsHeader, 0
	for at < len(b) {
		n := int(b[at])
		at++
		if n == 0 {
			return strings.Join(labels, "."), at
		}
		if n > 63 || at+n > len(b) || size+n+1 > maxDNSName+1 { // the first: compressed, which a question is not
			return "", 0
		}
		size += n + 1
		for _, c := range b[at : at+n] {
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return "", 0
			}
		}
		labels = append(labels, strings.ToLower(string(b[at:at+n])))
		at += n
	}
	return "", 0
}
