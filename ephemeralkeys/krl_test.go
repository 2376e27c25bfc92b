package ephemeralkeys

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// krlLab asks ssh-keygen -Q about certificates, as sshd would itself.
type krlLab struct {
	dir    string
	signer ssh.Signer
	ca     *CA
	base   *ssh.Certificate
}

func newKRLLab(t *testing.T) *krlLab {
	t.Helper()
	needKeygen(t)
	s := newSigner(t)
	ca := NewCA(s)
	return &krlLab{dir: t.TempDir(), signer: s, ca: ca, base: issue(t, ca, testGrant(t))}
}

// cert returns a certificate of any serial, also those that Issue refuses.
func (l *krlLab) cert(t *testing.T, serial uint64, keyID string) *ssh.Certificate {
	t.Helper()
	c := *l.base
	c.Serial, c.KeyId = serial, keyID
	resign(t, &c, l.signer)
	return &c
}

// revoked writes the list and returns which of the keys OpenSSH calls revoked.
func (l *krlLab) revoked(t *testing.T, k KRL, keys ...ssh.PublicKey) []bool {
	t.Helper()
	krl, err := MarshalKRL(k)
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(l.dir, "revoked.krl")
	if err := WriteFileAtomic(list, krl, 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"-Q", "-f", list}
	for i, key := range keys {
		path := filepath.Join(l.dir, fmt.Sprintf("%d.pub", i))
		if err := os.WriteFile(path, []byte(line(key)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, path)
	}
	out, ok := keygen(t, "", args...)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != len(keys) {
		t.Fatalf("ssh-keygen -Q: %s", out)
	}
	var got []bool
	for _, s := range lines {
		switch {
		case strings.HasSuffix(s, ": REVOKED"):
			got = append(got, true)
		case strings.HasSuffix(s, ": ok"):
			got = append(got, false)
		default:
			t.Fatalf("ssh-keygen -Q: %s", out)
		}
	}
	if ok == slices.Contains(got, true) {
		t.Errorf("ssh-keygen -Q succeeded: %v, for %s", ok, out)
	}
	return got
}

func TestKRLIsReadByOpenSSH(t *testing.T) {
	l := newKRLLab(t)
	stranger := NewCA(newSigner(t))
	foreign := issue(t, stranger, testGrant(t))
	ours := []ssh.PublicKey{l.ca.PublicKey()}
	evens := make([]uint64, 0, 500)
	for s := uint64(1000); s < 2000; s += 2 {
		evens = append(evens, s)
	}
	var many []uint64
	for s := uint64(1); s <= 20_000; s++ {
		many = append(many, s)
	}
	const most = math.MaxUint64

	tests := []struct {
		name    string
		krl     KRL
		revoked []uint64
		valid   []uint64
	}{
		{"empty", KRL{}, nil, []uint64{1, most}},
		{"empty with a comment and a CA", KRL{Version: 3, Generated: testNow, Comment: "podspawn", CAs: ours}, nil, []uint64{1}},
		{"one", KRL{CAs: ours, Serials: []uint64{7}}, []uint64{7}, []uint64{6, 8}},
		{"three, doubled and unordered", KRL{CAs: ours, Serials: []uint64{9, 7, 9, 5, 7}}, []uint64{5, 7, 9}, []uint64{4, 6, 8, 10}},
		{"a range", KRL{CAs: ours, Serials: []uint64{10, 11, 12, 13, 14, 15}}, []uint64{10, 12, 15}, []uint64{9, 16}},
		{"20000 in a row", KRL{CAs: ours, Serials: many}, []uint64{1, 8192, 8193, 20_000}, []uint64{20_001}},
		{"a bitmap", KRL{CAs: ours, Serials: evens}, []uint64{1000, 1002, 1998}, []uint64{999, 1001, 1999, 2000}},
		{"far apart", KRL{CAs: ours, Serials: []uint64{1, 1 << 20, 1 << 40}}, []uint64{1, 1 << 20, 1 << 40}, []uint64{2, 1<<20 + 1}},
		{"largest", KRL{CAs: ours, Serials: []uint64{most}}, []uint64{most}, []uint64{1, most - 1}},
		{"a range up to the largest", KRL{CAs: ours, Serials: []uint64{most - 4, most - 3, most - 2, most - 1, most}}, []uint64{most - 4, most}, []uint64{1, most - 5}},
		{"a bitmap up to the largest", KRL{CAs: ours, Serials: bitmapUpTo(most)}, []uint64{most, most - 2}, []uint64{1, most - 1}},
		{"of any CA", KRL{Serials: []uint64{7}}, []uint64{7}, []uint64{8}},
		{"of another CA", KRL{CAs: []ssh.PublicKey{stranger.PublicKey()}, Serials: []uint64{7}}, nil, []uint64{7}},
		{"of two CAs", KRL{CAs: []ssh.PublicKey{stranger.PublicKey(), l.ca.PublicKey(), l.ca.PublicKey()}, Serials: []uint64{7}}, []uint64{7}, []uint64{8}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var keys []ssh.PublicKey
			var want []bool
			for _, s := range tt.revoked {
				keys, want = append(keys, l.cert(t, s, "id")), append(want, true)
			}
			for _, s := range tt.valid {
				keys, want = append(keys, l.cert(t, s, "id")), append(want, false)
			}
			if got := l.revoked(t, tt.krl, keys...); !slices.Equal(got, want) {
				t.Errorf("revoked of %v, %v = %v, want %v", tt.revoked, tt.valid, got, want)
			}
		})
	}

	t.Run("key id", func(t *testing.T) {
		got := l.revoked(t, KRL{CAs: ours, KeyIDs: []string{"b", "a"}}, l.cert(t, 1, "a"), l.cert(t, 1, "b"), l.cert(t, 1, "c"))
		if want := []bool{true, true, false}; !slices.Equal(got, want) {
			t.Errorf("revoked = %v, want %v", got, want)
		}
	})
	t.Run("CA key", func(t *testing.T) {
		got := l.revoked(t, KRL{Keys: ours}, l.cert(t, 1, "a"), foreign, l.ca.PublicKey())
		if want := []bool{true, false, true}; !slices.Equal(got, want) {
			t.Errorf("revoked = %v, want %v", got, want)
		}
	})
	t.Run("client's key", func(t *testing.T) {
		got := l.revoked(t, KRL{Keys: append(skKeys(t), l.base.Key, l.base.Key)}, l.base.Key, l.base, foreign)
		if want := []bool{true, true, false}; !slices.Equal(got, want) {
			t.Errorf("revoked = %v, want %v", got, want)
		}
	})
	t.Run("one of two certificates of a key", func(t *testing.T) {
		got := l.revoked(t, KRL{CAs: ours, Serials: []uint64{1}}, l.cert(t, 1, "a"), l.cert(t, 2, "a"), l.base.Key)
		if want := []bool{true, false, false}; !slices.Equal(got, want) {
			t.Errorf("revoked = %v, want %v", got, want)
		}
	})
	t.Run("details", func(t *testing.T) {
		l.revoked(t, KRL{Version: 42, Generated: testNow, Comment: "a\nb", CAs: ours, Serials: []uint64{7}}, l.base)
		out, _ := keygen(t, "", "-Q", "-l", "-f", filepath.Join(l.dir, "revoked.krl"))
		for _, want := range []string{"KRL version 42", "Generated at 20270115T080000", "# Comment: a b"} {
			if !strings.Contains(out, want) {
				t.Errorf("ssh-keygen -Ql = %s, want %q", out, want)
			}
		}
	})
}

// TestKRLOfRandomSerials compares what OpenSSH lists with what was put in.
func TestKRLOfRandomSerials(t *testing.T) {
	l := newKRLLab(t)
	rng := rand.New(rand.NewPCG(1, 2)) // fixed: a failure can be repeated
	for round := range 20 {
		want := map[uint64]bool{}
		at := uint64(rng.IntN(100)) + 1
		for range 400 {
			at += 1 + uint64(rng.IntN(1+rng.IntN(1+1<<rng.IntN(14))))
			for range 1 + rng.IntN(5) {
				want[at] = true
				at++
			}
		}
		var serials []uint64
		for s := range want {
			serials = append(serials, s)
		}
		l.revoked(t, KRL{CAs: []ssh.PublicKey{l.ca.PublicKey()}, Serials: serials}, l.base)
		out, _ := keygen(t, "", "-Q", "-l", "-f", filepath.Join(l.dir, "revoked.krl"))
		n := 0
		for text := range strings.Lines(out) {
			var a, b uint64
			if c, _ := fmt.Sscanf(text, "serial: %d-%d", &a, &b); c == 0 {
				continue
			} else if c == 1 {
				b = a
			}
			for s := a; s <= b; s++ {
				if !want[s] {
					t.Errorf("round %d: serial %d is listed and was not revoked", round, s)
				}
				n++
			}
		}
		if n != len(want) {
			t.Errorf("round %d: OpenSSH lists %d serials, want %d", round, n, len(want))
		}
	}
}

func bitmapUpTo(end uint64) []uint64 {
	var out []uint64
	for i := uint64(0); i < 1000; i += 2 {
		out = append(out, end-i)
	}
	return out
}

func TestKRLIsSmall(t *testing.T) {
	var row, gaps []uint64
	for s := uint64(1); s <= 100_000; s++ {
		row = append(row, s)
		if s%3 != 0 {
			gaps = append(gaps, s)
		}
	}
	for name, tt := range map[string]struct {
		serials []uint64
		most    int
	}{"100000 in a row": {row, 200}, "two of three of 100000": {gaps, 100_000/8 + 600}} {
		b, err := MarshalKRL(KRL{Serials: tt.serials})
		if err != nil || len(b) > tt.most {
			t.Errorf("%s: %d bytes, %v, want at most %d", name, len(b), err, tt.most)
		}
	}
}

func TestMarshalKRLRefusesWhatLocksEverybodyOut(t *testing.T) {
	cert := issue(t, NewCA(newSigner(t)), testGrant(t))
	for name, k := range map[string]KRL{
		"serial 0":           {Serials: []uint64{1, 0}},
		"key id":             {KeyIDs: []string{"a\nb"}},
		"empty key id":       {KeyIDs: []string{""}},
		"certificate as key": {Keys: []ssh.PublicKey{cert}},
		"certificate as CA":  {CAs: []ssh.PublicKey{cert}},
		"no key":             {Keys: []ssh.PublicKey{nil}},
	} {
		if b, err := MarshalKRL(k); !errors.Is(err, ErrKRL) || b != nil {
			t.Errorf("%s: MarshalKRL = %d bytes, %v, want ErrKRL", name, len(b), err)
		}
	}
}
