package resolver

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"
)

const (
	// tryLimit is how long one name server may take, askLimit all of them together.
	tryLimit = 2 * time.Second
	askLimit = 5 * time.Second
	// maxServers is how many lines of resolv.conf count, as for the C library.
	maxServers    = 3
	maxResolvConf = 64 << 10
)

var errNoServers = errors.New("the host's resolv.conf names no name server")

// servers reads the name servers of a resolv.conf, which all listen on port.
func servers(path string, port uint16) ([]netip.AddrPort, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []netip.AddrPort
	lines := bufio.NewScanner(io.LimitReader(f, maxResolvConf))
	for lines.Scan() && len(out) < maxServers {
		w := strings.Fields(lines.Text())
		if len(w) < 2 || w[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(w[1]); err == nil {
			out = append(out, netip.AddrPortFrom(a, port))
		}
	}
	if len(out) == 0 {
		return nil, errors.Join(errNoServers, lines.Err())
	}
	return out, nil
}

// ask has the name servers answer the question, one after another, and returns
// the first answer, under any id. Over udp it may be truncated.
func ask(ctx context.Context, q query, network string, servers []netip.AddrPort) (answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	err = errNoServers
	for _, s := range servers {
		if answer, err = askOne(ctx, q, network, s); err == nil {
			return answer, nil
		}
	}
	return nil, err
}

// askOne uses a socket of its own, so that each question has a source port and an
// id which nobody can guess.
func askOne(ctx context.Context, q query, network string, server netip.AddrPort) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, tryLimit)
	defer cancel()
	var raw [2]byte
	rand.Read(raw[:]) // never fails
	id := binary.BigEndian.Uint16(raw[:])
	msg, err := q.forward(id)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", server, err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) }) // ends reads and writes
	defer stop()
	if network == "tcp" {
		if err := writeTCP(c, msg); err != nil {
			return nil, fmt.Errorf("ask %s: %w", server, err)
		}
		b, err := readTCP(c, maxAnswer)
		if err != nil {
			return nil, fmt.Errorf("answer of %s: %w", server, err)
		}
		_, err = q.checkAnswer(b, id)
		return b, err
	}
	if _, err := c.Write(msg); err != nil {
		return nil, fmt.Errorf("ask %s: %w", server, err)
	}
	buf := make([]byte, maxAnswer)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, fmt.Errorf("answer of %s: %w", server, err)
		}
		if _, err := q.checkAnswer(buf[:n], id); err == nil {
			return buf[:n:n], nil
		} // else somebody's guess; the answer may still come
	}
}

func writeTCP(w io.Writer, msg []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg))), msg...))
	return err
}

func readTCP(r io.Reader, limit int) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n > limit {
		return nil, errNotQuery
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}
