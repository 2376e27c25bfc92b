package sshhook

import (
	"net"
	"os"
	"testing"
)

func TestListeningSeesOnlyTheUsersOwnOpenPorts(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	for _, tt := range []struct {
		name string
		uid  int
		want bool
	}{{"ours", os.Getuid(), true}, {"another's", os.Getuid() + 1, false}} {
		ports, err := listening(tt.uid)
		if err != nil {
			t.Fatal(err)
		}
		if ports[port] != tt.want {
			t.Errorf("%s: port %d listed: %v, want %v", tt.name, port, ports[port], tt.want)
		}
		for p := range ports {
			if p < 1024 {
				t.Errorf("%s: privileged port %d listed", tt.name, p)
			}
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if ports, err := listening(os.Getuid()); err != nil || ports[port] {
		t.Errorf("closed port %d listed, %v", port, err)
	}
}

func FuzzParseDiagNeverPanics(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 16))
	f.Add([]byte{16, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add(append([]byte{88, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 72)...))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = parseDiag(b, func(uint16, uint32) {})
	})
}
