package sshhook

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"
)

func TestNamesAreAnsweredByAddressesThatStandForThem(t *testing.T) {
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var n names
	done := make(chan struct{})
	go func() { defer close(done); n.serve(context.Background(), c) }()
	defer func() { _ = c.Close(); <-done }()
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp4", c.LocalAddr().String())
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, name := range []string{"db.", "Some-Service.example.org.", "db."} {
		addrs, err := r.LookupNetIP(ctx, "ip", name)
		if err != nil || len(addrs) != 1 || !nameNet.Contains(addrs[0].Unmap()) {
			t.Fatalf("%s: %v, %v, want one address of %s", name, addrs, err, nameNet)
		}
		want := map[string]string{"db.": "db"}[name]
		if want == "" {
			want = "some-service.example.org"
		}
		if got := n.name(addrs[0].Unmap()); got != want {
			t.Errorf("%s stands for %q, want %q", addrs[0], got, want)
		}
	}
	if a, b := n.addr("db"), n.addr("db"); a != b {
		t.Errorf("db is %s and %s", a, b)
	}
}

func TestOldNamesAreForgotten(t *testing.T) {
	var n names
	first := n.addr("first")
	for i := range maxNames {
		n.addr(fmt.Sprint("n", i))
	}
	if got := n.name(first); got == "first" || len(n.byName) > maxNames {
		t.Errorf("after %d others %s is still %q, %d names are kept", maxNames, first, got, len(n.byName))
	}
}

func FuzzAnswerNeverPanics(f *testing.F) {
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02db\x00\x00\x01\x00\x01"))
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\xc0\x0c\x00\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, query []byte) {
		var n names
		if a := n.answer(query); a != nil && len(a) > len(query)+16 {
			t.Errorf("answer of %d bytes to %d", len(a), len(query))
		}
	})
}
