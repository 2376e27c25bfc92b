package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	bigint "math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// The stand-in for everything outside of the host: a network namespace of the
// test's own behind the lab's only way out, in which one program plays a public
// web server, the name server, a metadata service and machines of the LAN. The lab
// has no uplink, so nothing leaves it whatever these addresses mean elsewhere.
const (
	webAddr = "93.184.216.34"
	dnsAddr = "93.184.216.53"
	hostUp  = "172.31.99.1" // the host's own address on that side
)

// privateAddrs are the stand-in's addresses that no sandbox may get to.
var privateAddrs = []string{
	"169.254.169.254", "100.100.100.200", "192.168.77.7", "10.99.0.7", "172.16.5.5", "198.18.0.9", "192.0.0.192", "203.0.113.7", "240.1.1.1",
}

// names are what the stand-in's name server knows.
var names = map[string]string{
	"web.test.": webAddr, "deb.test.": webAddr, "git.test.": webAddr, "metadata.test.": "169.254.169.254",
	"lan.test.": "192.168.77.7", "aws6.test.": "fd00:ec2::254",
}

// internet is the stand-in, seen from the tests.
type internet struct {
	dir string // what the web server serves; requests.log is its log
	ca  string
}

// startInternet plays the internet until the test ends.
func startInternet(t *testing.T) internet {
	t.Helper()
	need(t)
	in := internet{dir: shortDir(t)}
	if err := os.Chmod(in.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	in.ca = in.certificate(t)
	oldResolv, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var extra strings.Builder
	for _, a := range append([]string{webAddr, dnsAddr}, privateAddrs[:len(privateAddrs)-1]...) {
		fmt.Fprintf(&extra, "ip -n inet addr add %s/32 dev lo\n", a)
	}
	if err := command("sh", "-ec", `ip netns add inet
		ip link add up0 type veth peer name eth0 netns inet
		ip addr add 172.31.99.1/30 dev up0; ip link set up0 up
		ip -n inet addr add 172.31.99.2/30 dev eth0; ip -n inet link set eth0 up; ip -n inet link set lo up
		ip route add default via 172.31.99.2
		`+extra.String()); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", "inet", helper)
	cmd.Env = append(os.Environ(), "E2E_INTERNET="+in.dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	t.Cleanup(func() {
		if cmd.Process != nil {
			_ = cmd.Process.Kill() // it has no end of its own
			_ = cmd.Wait()
		}
		if err := errors.Join(
			command("sh", "-c", "ip link delete up0; ip netns delete inet"),
			os.WriteFile("/etc/resolv.conf", oldResolv, 0o644),
		); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(cmd.Start(), os.WriteFile("/etc/resolv.conf", []byte("nameserver "+dnsAddr+"\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	// Also the proof that the host itself does reach what sandboxes must not.
	for _, a := range []string{webAddr, "169.254.169.254", "192.168.77.7", "100.100.100.200"} {
		eventually(t, 10*time.Second, func() error { return command("curl", "-fsS", "-m", "2", "http://"+a+"/who") })
	}
	if err := os.Truncate(filepath.Join(in.dir, "requests.log"), 0); err != nil {
		t.Fatal(err)
	}
	return in
}

// requests returns the addresses that were asked for anything so far, one a line.
func (in internet) requests(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(in.dir, "requests.log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// certificate makes the web server's certificate, which is its own CA.
func (in internet) certificate(t *testing.T) (pemText string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: bigint.NewInt(1), Subject: pkix.Name{CommonName: "stand-in"}, DNSNames: []string{"git.test", "web.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := errors.Join(
		os.WriteFile(filepath.Join(in.dir, "cert.pem"), cert, 0o644),
		os.WriteFile(filepath.Join(in.dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	return string(cert)
}

// serveInternet is the stand-in's program, in its namespace.
func serveInternet(dir string) int {
	log, err := os.OpenFile(filepath.Join(dir, "requests.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/who", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "you are %s\n", r.RemoteAddr)
	})
	mux.Handle("/redirect", http.RedirectHandler("http://169.254.169.254/who", http.StatusFound))
	mux.Handle("/", http.FileServer(http.Dir(dir)))
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(log, "%v %s\n", r.Context().Value(http.LocalAddrContextKey), r.URL.Path)
		mux.ServeHTTP(w, r)
	})
	errs := make(chan error, 4)
	go func() { errs <- http.ListenAndServe(":80", h) }()
	go func() {
		cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
		if err != nil {
			errs <- err
			return
		}
		s := &http.Server{Addr: ":443", Handler: h, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}
		errs <- s.ListenAndServeTLS("", "")
	}()
	go func() { errs <- serveNames() }()
	fmt.Fprintln(os.Stderr, <-errs)
	return 1
}

func serveNames() error {
	c, err := net.ListenPacket("udp", dnsAddr+":53")
	if err != nil {
		return err
	}
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		q := m.Questions[0]
		m.Header = dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}
		m.Additionals = nil
		head := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 5}
		a, err := netip.ParseAddr(names[strings.ToLower(q.Name.String())])
		switch {
		case err != nil:
			m.RCode = dnsmessage.RCodeNameError
		case a.Is4() && q.Type == dnsmessage.TypeA:
			m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.AResource{A: a.As4()}}}
		case a.Is6() && q.Type == dnsmessage.TypeAAAA:
			m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}}}
		}
		out, err := m.Pack()
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(out, from); err != nil {
			return err
		}
	}
}
