package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// upstream is a name server on a loopback address of its own.
type upstream struct {
	addr  netip.AddrPort
	mu    sync.Mutex // guards asked
	asked []string
}

// startUpstream answers what reply makes of a question; nil is silence.
func startUpstream(t *testing.T, reply func(id uint16, q dnsmessage.Question, network string) []byte) *upstream {
	t.Helper()
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp4", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{addr: netip.MustParseAddrPort(udp.LocalAddr().String())}
	handle := func(b []byte, network string) []byte {
		var p dnsmessage.Parser
		h, err := p.Start(b)
		if err != nil {
			t.Errorf("upstream got a broken message: %v", err)
			return nil
		}
		q, err := p.Question()
		if err != nil {
			t.Errorf("upstream got no question: %v", err)
			return nil
		}
		u.mu.Lock()
		u.asked = append(u.asked, network+" "+q.Name.String())
		u.mu.Unlock()
		return reply(h.ID, q, network)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			if out := handle(buf[:n], "udp"); out != nil {
				_, _ = udp.WriteTo(out, from) // the asker may have given up
			}
		}
	})
	wg.Go(func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			if b, err := readTCP(c, 4096); err == nil {
				if out := handle(b, "tcp"); out != nil {
					_ = writeTCP(c, out) // the asker may have given up
				}
			}
			c.Close()
		}
	})
	t.Cleanup(func() { udp.Close(); tcp.Close(); wg.Wait() })
	return u
}

func (u *upstream) questions() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]string(nil), u.asked...)
}

// records makes an answer with an A record for each address.
func records(id uint16, q dnsmessage.Question, addrs ...string) []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, Response: true, RecursionAvailable: true})
	err := errors.Join(b.StartQuestions(), b.Question(q), b.StartAnswers())
	for _, a := range addrs {
		ip := netip.MustParseAddr(a)
		h := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 60}
		if ip.Is4() {
			err = errors.Join(err, b.AResource(h, dnsmessage.AResource{A: ip.As4()}))
		} else {
			err = errors.Join(err, b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: ip.As16()}))
		}
	}
	out, ferr := b.Finish()
	if err := errors.Join(err, ferr); err != nil {
		panic(err)
	}
	return out
}

func question(t testing.TB, name string, typ dnsmessage.Type) []byte {
	t.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 7, RecursionDesired: true})
	err := errors.Join(b.StartQuestions(), b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}))
	out, ferr := b.Finish()
	if err := errors.Join(err, ferr); err != nil {
		t.Fatal(err)
	}
	return out
}

// startServer runs a resolver that forwards to u and answers sources.
func startServer(t *testing.T, u *upstream, sources string) netip.AddrPort {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("# ours\nsearch example\nnameserver 127.0.0.1\noptions x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	free, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(free.LocalAddr().String())
	free.Close()
	s := New(Config{Listen: addr, Sources: netip.MustParsePrefix(sources), ResolvConf: conf})
	s.port = u.addr.Port()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		c, err := net.Dial("tcp4", addr.String())
		if err == nil {
			c.Close()
			return addr
		}
		if time.Now().After(deadline) {
			t.Fatal("the resolver does not listen")
		}
	}
}

// exchange sends a message and returns what comes back within wait; nil is silence.
func exchange(t *testing.T, network string, to netip.AddrPort, msg []byte, wait time.Duration) []byte {
	t.Helper()
	c, err := net.Dial(network, to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	if network == "tcp" {
		if err := writeTCP(c, msg); err != nil {
			t.Fatal(err)
		}
		b, err := readTCP(c, maxAnswer)
		if err != nil {
			return nil
		}
		return b
	}
	if _, err := c.Write(msg); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, maxAnswer)
	n, err := c.Read(buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

// Threat 57, as far as names go: whatever a name resolves to, an address that is
// not public is not told.
func TestAnswersHoldPublicAddressesOnly(t *testing.T) {
	answers := map[string][]string{
		"public.test.":   {"93.184.216.34", "2606:2800:220:1::1"},
		"metadata.test.": {"169.254.169.254"},
		"mixed.test.":    {"93.184.216.34", "10.0.0.1"},
		"mapped.test.":   {"::ffff:169.254.169.254"},
		"nat64.test.":    {"64:ff9b::a9fe:a9fe"},
		"aws6.test.":     {"fd00:ec2::254"},
		"alibaba.test.":  {"100.100.100.200"},
		"loopback.test.": {"127.0.0.1"},
	}
	u := startUpstream(t, func(id uint16, q dnsmessage.Question, _ string) []byte {
		return records(id, q, answers[q.Name.String()]...)
	})
	addr := startServer(t, u, "127.0.0.0/8")
	for name := range answers {
		for _, network := range []string{"udp", "tcp"} {
			var m dnsmessage.Message
			if err := m.Unpack(exchange(t, network, addr, question(t, name, dnsmessage.TypeA), 5*time.Second)); err != nil {
				t.Errorf("%s over %s: %v", name, network, err)
				continue
			}
			want := 0
			if name == "public.test." {
				want = 2
			}
			if m.ID != 7 || !m.Response || m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != want {
				t.Errorf("%s over %s: %v, want %d records", name, network, m.GoString(), want)
			}
		}
	}
}

func TestQuestionsThatAreNotForwarded(t *testing.T) {
	u := startUpstream(t, func(id uint16, q dnsmessage.Question, _ string) []byte { return records(id, q, "93.184.216.34") })
	addr := startServer(t, u, "127.0.0.0/8")
	two := question(t, "a.test.", dnsmessage.TypeA)
	two[5] = 2
	update := question(t, "a.test.", dnsmessage.TypeA)
	update[2] |= 5 << 3
	chaos := question(t, "version.bind.", dnsmessage.TypeTXT)
	chaos[len(chaos)-1] = 3
	answer := question(t, "a.test.", dnsmessage.TypeA)
	answer[2] |= 0x80
	for name, tc := range map[string]struct {
		msg  []byte
		want int // -1 is silence
	}{
		"any":               {question(t, "a.test.", dnsmessage.TypeALL), int(dnsmessage.RCodeRefused)},
		"axfr":              {question(t, "a.test.", dnsmessage.TypeAXFR), int(dnsmessage.RCodeRefused)},
		"ixfr":              {question(t, "a.test.", 251), int(dnsmessage.RCodeRefused)},
		"chaos":             {chaos, int(dnsmessage.RCodeRefused)},
		"update":            {update, int(dnsmessage.RCodeNotImplemented)},
		"reverse/private":   {question(t, "5.1.168.192.in-addr.arpa.", dnsmessage.TypePTR), int(dnsmessage.RCodeNameError)},
		"reverse/network":   {question(t, "10.IN-addr.arpa.", dnsmessage.TypeNS), int(dnsmessage.RCodeNameError)},
		"reverse/loopback6": {question(t, "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa.", dnsmessage.TypePTR), int(dnsmessage.RCodeNameError)},
		"two questions":     {two, int(dnsmessage.RCodeNotImplemented)},
		"an answer":         {answer, -1},
		"garbage":           {[]byte("garbage"), -1},
		"too long":          {append(question(t, "a.test.", dnsmessage.TypeA), make([]byte, maxQuery)...), -1},
	} {
		t.Run(name, func(t *testing.T) {
			out := exchange(t, "udp", addr, tc.msg, 300*time.Millisecond)
			if tc.want < 0 {
				if out != nil {
					t.Errorf("answer %x, want silence", out)
				}
				return
			}
			var m dnsmessage.Message
			if err := m.Unpack(out); err != nil || int(m.RCode) != tc.want || len(m.Answers) > 0 {
				t.Errorf("answer %v, %v, want rcode %d", m.GoString(), err, tc.want)
			}
		})
	}
	if asked := u.questions(); len(asked) > 0 {
		t.Errorf("the name server was asked %q", asked)
	}
	if out := exchange(t, "udp", addr, question(t, "4.4.8.8.in-addr.arpa.", dnsmessage.TypePTR), 5*time.Second); out == nil || len(u.questions()) != 1 {
		t.Errorf("a public reverse name: %x, asked %q", out, u.questions())
	}
}

func TestLargeAnswersGoOverTCP(t *testing.T) {
	many := make([]string, 200)
	for i := range many {
		many[i] = netip.AddrFrom4([4]byte{93, 184, 1, byte(i)}).String()
	}
	u := startUpstream(t, func(id uint16, q dnsmessage.Question, network string) []byte {
		out := records(id, q, many...)
		if network == "udp" && strings.HasPrefix(q.Name.String(), "cut") {
			out = records(id, q)
			out[2] |= 2
		}
		return out
	})
	addr := startServer(t, u, "127.0.0.0/8")
	for _, name := range []string{"cut.test.", "long.test."} {
		var m dnsmessage.Message
		if err := m.Unpack(exchange(t, "udp", addr, question(t, name, dnsmessage.TypeA), 5*time.Second)); err != nil || !m.Truncated || len(m.Answers) > 0 {
			t.Errorf("%s over udp: %v, %v, want truncated", name, m.GoString(), err)
		}
		if err := m.Unpack(exchange(t, "tcp", addr, question(t, name, dnsmessage.TypeA), 5*time.Second)); err != nil || m.Truncated || len(m.Answers) != len(many) {
			t.Errorf("%s over tcp: %d records, %v, want %d", name, len(m.Answers), err, len(many))
		}
	}
}

func TestOthersAreNotAnswered(t *testing.T) {
	u := startUpstream(t, func(id uint16, q dnsmessage.Question, _ string) []byte { return records(id, q, "93.184.216.34") })
	addr := startServer(t, u, "10.213.0.0/16")
	for _, network := range []string{"udp", "tcp"} {
		if out := exchange(t, network, addr, question(t, "a.test.", dnsmessage.TypeA), 300*time.Millisecond); out != nil {
			t.Errorf("over %s: %x, want silence", network, out)
		}
	}
	if asked := u.questions(); len(asked) > 0 {
		t.Errorf("the name server was asked %q", asked)
	}
}

func TestWrongAnswersAreNotTaken(t *testing.T) {
	u := startUpstream(t, func(id uint16, q dnsmessage.Question, _ string) []byte {
		switch q.Name.String() {
		case "id.test.":
			return records(id+1, q, "93.184.216.34")
		case "name.test.":
			q.Name = dnsmessage.MustNewName("other.test.")
			return records(id, q, "93.184.216.34")
		case "cut.test.":
			out := records(id, q, "93.184.216.34")
			return out[:len(out)-2]
		}
		return []byte("x")
	})
	addr := startServer(t, u, "127.0.0.0/8")
	for _, name := range []string{"id.test.", "name.test.", "cut.test.", "x.test."} {
		var m dnsmessage.Message
		if err := m.Unpack(exchange(t, "udp", addr, question(t, name, dnsmessage.TypeA), 8*time.Second)); err != nil || m.RCode != dnsmessage.RCodeServerFailure {
			t.Errorf("%s: %v, %v, want server failure", name, m.GoString(), err)
		}
	}
}

func TestQuota(t *testing.T) {
	q, now := newQuota(), time.Now()
	one, two := netip.MustParseAddr("10.213.0.2"), netip.MustParseAddr("10.213.0.6")
	for i := range ofOne {
		if !q.take(one, now) {
			t.Fatalf("question %d at once is refused", i)
		}
	}
	if q.take(one, now) || !q.take(two, now) {
		t.Error("one question too many is taken, or another sandbox's refused")
	}
	for range ofOne {
		q.give(one)
	}
	n := 0
	for q.take(one, now) {
		q.give(one)
		n++
	}
	if n != burst-ofOne {
		t.Errorf("%d questions in one moment, want %d", n+ofOne, burst)
	}
	if !q.take(one, now.Add(time.Second)) {
		t.Error("refused after a second of silence")
	}
	for i := range uint32(2 * maxKnown) {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 10<<24|i)
		q.take(netip.AddrFrom4(a), now)
	}
	if len(q.uses) > maxKnown {
		t.Errorf("%d sources are remembered", len(q.uses))
	}
}

func FuzzAnswerNeverPanics(f *testing.F) {
	q := dnsmessage.Question{Name: dnsmessage.MustNewName("a.test."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	f.Add(question(f, "a.test.", dnsmessage.TypeA), records(1, q, "10.0.0.1"))
	f.Add(question(f, "1.0.0.10.in-addr.arpa.", dnsmessage.TypePTR), records(1, q, "93.184.216.34", "::1"))
	f.Fuzz(func(t *testing.T, ask, reply []byte) {
		q, code, err := parseQuery(ask)
		if err != nil {
			return
		}
		if _, err := q.empty(code, false); err != nil {
			t.Errorf("no answer to %x: %v", ask, err)
		}
		if _, err := q.forward(1); err != nil {
			t.Errorf("%x can't be forwarded: %v", ask, err)
		}
		if _, err := q.checkAnswer(reply, 1); err != nil {
			return
		}
		out, err := q.answer(reply)
		if err == nil && binary.BigEndian.Uint16(out) != q.id {
			t.Errorf("answer under the id %x, want %x", out[:2], q.id)
		}
	})
}
