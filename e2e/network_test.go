package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// bridge is the name of a sandbox's bridge.
func bridge(s sandbox) string { return "ps-" + strings.TrimPrefix(s.ID, "sbx_")[:12] }

// noBridge returns an error when a network or bridge of the sandbox is left.
func noBridge(s sandbox) error {
	return errors.Join(
		absent("docker", "network", "ls", "-q", "--filter", "label=dev.podspawn.sandbox="+s.ID),
		absent("sh", "-c", "ls -d /sys/class/net/"+bridge(s)+" 2>/dev/null; true"),
		absent("sh", "-c", "nft list ruleset 2>/dev/null | grep -v '^\\s*elements\\|^\\s*\"ps-' | grep -F "+bridge(s)+"; true"),
	)
}

// address returns the sandbox's address and its gateway's.
func address(t *testing.T, s sandbox) (own, gateway string) {
	t.Helper()
	id := strings.TrimSpace(run(t, nil, "docker", "ps", "-q", "--filter", "label=dev.podspawn.sandbox="+s.ID).stdout)
	r := run(t, nil, "docker", "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.Gateway}}{{end}}", id)
	f := strings.Fields(r.stdout)
	if len(f) != 2 {
		t.Fatalf("no address: %v", r)
	}
	return f[0], f[1]
}

// fetch gets a URL from inside; it prints the status curl ended with and how long
// it took, after the page.
func fetch(t *testing.T, c client, url string, flags ...string) (page string, code string, took time.Duration) {
	t.Helper()
	r := c.ssh(t, nil, "begin=$(date +%s%N); curl -sS -g -f -m 10 "+strings.Join(flags, " ")+" '"+url+"' 2>&1; rc=$?; echo; echo $rc $(( ($(date +%s%N) - begin) / 1000000 ))")
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	var ms int64
	if _, err := fmt.Sscan(lines[len(lines)-1], &code, &ms); err != nil {
		t.Fatalf("curl %s: %v", url, r)
	}
	return r.stdout, code, time.Duration(ms) * time.Millisecond
}

func TestPublicEgress(t *testing.T) {
	in := startInternet(t)
	s := create(t, "--egress", "public", "--grace", "10m")
	c := connectable(t, s)
	own, gateway := address(t, s)
	other := create(t, "--egress", "public", "--grace", "10m")
	otherAddr, _ := address(t, other)
	if r := run(t, nil, "docker", "exec", "-d", "-u", "0:0", strings.TrimSpace(run(t, nil, "docker", "ps", "-q", "--filter", "label=dev.podspawn.sandbox="+other.ID).stdout),
		"python3", "-m", "http.server", "8080"); r.code != 0 {
		t.Fatalf("start a server in the other sandbox: %v", r)
	}
	eventually(t, 20*time.Second, func() error { // it listens, as it says itself
		return command("docker", "exec", "-u", "0:0", strings.TrimSpace(run(t, nil, "docker", "ps", "-q", "--filter", "label=dev.podspawn.sandbox="+other.ID).stdout),
			"curl", "-fsS", "-o", "/dev/null", "http://127.0.0.1:8080/")
	})

	// A service of the host's on all of its addresses.
	l, err := net.Listen("tcp", "0.0.0.0:8099")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	hits := make(chan string, 100)
	srv := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { hits <- r.RemoteAddr })}
	go func() { _ = srv.Serve(l) }() // ends with l
	defer srv.Close()
	if err := command("curl", "-fsS", "http://"+gateway+":8099/"); err != nil {
		t.Fatalf("the host does not reach its own service: %v", err)
	}
	<-hits

	t.Run("works", func(t *testing.T) {
		for _, url := range []string{"http://" + webAddr + "/who", "http://web.test/who", "http://WEB.test:80/who"} {
			page, code, _ := fetch(t, c, url)
			if code != "0" || !strings.Contains(page, "you are "+hostUp+":") {
				t.Errorf("%s: curl %s: %q, want an answer to the host's address", url, code, page)
			}
		}
		if r := c.ssh(t, nil, "getent ahosts nowhere.test; echo $?"); !strings.HasPrefix(r.stdout, "2") {
			t.Errorf("a name that is not there: %v", r)
		}
	})

	denied := map[string]string{
		"metadata/dotted":        "http://169.254.169.254/who",
		"metadata/decimal":       "http://2852039166/who",
		"metadata/octal":         "http://0251.0376.0251.0376/who",
		"metadata/hex":           "http://0xa9.0xfe.0xa9.0xfe/who",
		"metadata/one hex":       "http://0xa9fea9fe/who",
		"metadata/mixed":         "http://169.254.43518/who",
		"metadata/mapped":        "http://[::ffff:169.254.169.254]/who",
		"metadata/mapped in hex": "http://[::ffff:a9fe:a9fe]/who",
		"metadata/nat64":         "http://[64:ff9b::a9fe:a9fe]/who",
		"metadata/by name":       "http://metadata.test/who",
		"metadata/v6":            "http://[fd00:ec2::254]/who",
		"metadata/v6 by name":    "http://aws6.test/who",
		"metadata/redirect":      "http://web.test/redirect",
		"lan/by name":            "http://lan.test/who",
		"link-local v6":          "http://[fe80::1%25eth0]/who",
		"host/gateway":           "http://" + gateway + ":8099/",
		"host/other address":     "http://" + hostUp + ":8099/",
		"host/ssh":               "http://" + gateway + ":22/",
		"host/api":               "http://" + gateway + ":7722/healthz",
		"host/resolver's":        "http://10.213.255.253:8099/",
		"host/loopback":          "http://127.0.0.1:8099/",
		"other sandbox":          "http://" + otherAddr + ":8080/",
		"other sandbox/gateway":  "http://" + strings.TrimSuffix(otherAddr, otherAddr[strings.LastIndexByte(otherAddr, '.'):]) + ".1:8099/",
		"broadcast":              "http://255.255.255.255/who",
		"zero":                   "http://0.0.0.0:8099/",
		"multicast":              "http://224.0.0.1/who",
	}
	for _, a := range privateAddrs {
		denied["private/"+a] = "http://" + a + "/who"
	}
	// First those that the audit log is looked at for: the kernel notes 20 a minute.
	audited := []string{"169.254.169.254:80", gateway + ":8099", "192.168.77.7:80"}
	for _, to := range audited {
		if page, code, _ := fetch(t, c, "http://"+to+"/"); code == "0" {
			t.Errorf("%s: %q, want refused", to, page)
		}
	}
	for name, url := range denied {
		t.Run("denied/"+name, func(t *testing.T) {
			flags := []string{"-L"}
			if name == "broadcast" || name == "multicast" {
				flags = append(flags, "-m 2") // the kernel answers no packet to many: that would be a storm
			}
			page, code, took := fetch(t, c, url, flags...)
			if code == "0" || strings.Contains(page, "you are") || took > 3*time.Second {
				t.Errorf("%s: curl ended with %s after %s: %q, want refused at once", url, code, took, page)
			}
		})
	}
	for _, a := range privateAddrs {
		if strings.Contains(in.requests(t), a+":") {
			t.Errorf("a request reached %s:\n%s", a, in.requests(t))
		}
	}
	select {
	case who := <-hits:
		t.Errorf("a request from %s reached the host's service", who)
	default:
	}
	t.Run("nobody connects to a sandbox", func(t *testing.T) {
		if err := command("curl", "-fsS", "-m", "5", "http://"+otherAddr+":8080/"); err == nil {
			t.Error("the host reaches a sandbox's port")
		}
		if err := command("ip", "netns", "exec", "inet", "sh", "-c", "ip route replace 10.213.0.0/16 via "+hostUp+"; curl -fsS -m 2 http://"+otherAddr+":8080/"); err == nil {
			t.Error("the outside reaches a sandbox's port")
		}
		if err := command("ip", "netns", "exec", "inet", "sh", "-c", "ip route replace 10.213.0.0/16 via "+hostUp+"; curl -sS -m 2 http://10.213.255.253:7753/"); err == nil {
			t.Error("the outside reaches the resolver")
		}
	})
	t.Run("audit", func(t *testing.T) {
		for _, want := range audited {
			eventually(t, 10*time.Second, func() error {
				for _, ev := range deniedEvents(t, s) {
					if ev.Detail["destination"] == want && ev.Detail["protocol"] == "tcp" && ev.Source == own && ev.Tenant == "root" {
						return nil
					}
				}
				return fmt.Errorf("no egress.denied for %s in %+v", want, deniedEvents(t, s))
			})
		}
	})
	t.Run("audit is bounded", func(t *testing.T) {
		r := c.ssh(t, strings.NewReader(`
import socket
for i in range(400):
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try: u.sendto(b"x", ("10.1.2.3", 1000 + i))
    except OSError: pass
`), "python3 -")
		if r.code != 0 {
			t.Fatalf("flood: %v", r)
		}
		eventually(t, 10*time.Second, func() error { return command("podspawn", "list") })
		if n := len(deniedEvents(t, s)); n > 80 {
			t.Errorf("%d events of one sandbox within a minute", n)
		}
	})
}

type denial struct {
	Event, Tenant, Sandbox, Source string
	Detail                         map[string]string
}

func deniedEvents(t *testing.T, s sandbox) []denial {
	t.Helper()
	b, err := os.ReadFile("/var/log/podspawn/audit.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	var out []denial
	for line := range bytes.Lines(b) {
		var ev denial
		if json.Unmarshal(line, &ev) == nil && ev.Event == "egress.denied" && ev.Sandbox == s.ID {
			out = append(out, ev)
		}
	}
	return out
}

// A sandbox is worth something: packages, and repositories over http and https.
func TestPackagesAndRepositories(t *testing.T) {
	in := startInternet(t)
	if err := command("sh", "-ec", `cd `+in.dir+`
		mkdir -p pkg/DEBIAN pkg/usr/bin deb; printf '#!/bin/sh\necho installed\n' >pkg/usr/bin/stand-in; chmod 755 pkg/usr/bin/stand-in pkg/DEBIAN
		printf 'Package: stand-in\nVersion: 1.0\nArchitecture: all\nMaintainer: x <x@example.com>\nDescription: x\n' >pkg/DEBIAN/control
		dpkg-deb --root-owner-group --build pkg deb/stand-in.deb
		git init -q --bare repo.git; git clone -q repo.git work 2>/dev/null; cd work; echo content >file; git add file
		git -c user.name=x -c user.email=x@example.com commit -qm first; git push -q origin HEAD:main
		git -C ../repo.git symbolic-ref HEAD refs/heads/main; git -C ../repo.git update-server-info`); err != nil {
		t.Fatal(err)
	}
	deb, err := os.ReadFile(filepath.Join(in.dir, "deb/stand-in.deb"))
	if err != nil {
		t.Fatal(err)
	}
	index := fmt.Sprintf("Package: stand-in\nVersion: 1.0\nArchitecture: all\nMaintainer: x <x@example.com>\nFilename: ./stand-in.deb\nSize: %d\nSHA256: %x\nDescription: x\n\n",
		len(deb), sha256.Sum256(deb))
	if err := os.WriteFile(filepath.Join(in.dir, "deb/Packages"), []byte(index), 0o644); err != nil {
		t.Fatal(err)
	}
	c := connectable(t, create(t, "--grace", "10m"))
	r := c.ssh(t, nil, `echo 'deb [trusted=yes] http://deb.test/deb ./' >/tmp/test.list
		o='-o Dir::Etc::sourcelist=/tmp/test.list -o Dir::Etc::sourceparts=/dev/null'
		sudo apt-get $o update 2>&1 && sudo apt-get $o install -y stand-in 2>&1 && stand-in`)
	if r.code != 0 || !strings.HasSuffix(r.stdout, "installed\n") {
		t.Errorf("apt-get update and install: %v", r)
	}
	if r := c.ssh(t, strings.NewReader(in.ca), `cat >/tmp/ca.pem; cd /tmp && git clone -q http://git.test/repo.git one && git -c http.sslCAInfo=/tmp/ca.pem clone -q https://git.test/repo.git two && cat one/file two/file`); r.code != 0 || r.stdout != "content\ncontent\n" {
		t.Errorf("git clone: %v", r)
	}
	if r := c.ssh(t, nil, "git clone -q https://git.test/repo.git /tmp/three"); r.code == 0 {
		t.Errorf("git clone without the CA: %v, want refused", r)
	}
}

// Threat 104: whatever flushes the rules, they are back within a second, and what
// was refused is refused again.
func TestRulesComeBack(t *testing.T) {
	in := startInternet(t)
	s := create(t, "--grace", "10m")
	c := connectable(t, s)
	flushes := []string{"flush ruleset", "delete table inet podspawn-egress", "flush chain inet podspawn-egress out"}
	if os.Getenv("E2E_DOCKER_IPTABLES") != "" {
		flushes = flushes[1:] // Docker needs a restart after it
	}
	for _, flush := range flushes {
		if err := command("nft", strings.Fields(flush)...); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		eventually(t, 5*time.Second, func() error {
			return command("sh", "-c", "nft list chain inet podspawn-egress out | grep -q 169.254.0.0/16")
		})
		if took := time.Since(began); took > time.Second {
			t.Errorf("nft %s: rules back after %s", flush, took)
		}
	}
	if page, code, _ := fetch(t, c, "http://169.254.169.254/who"); code == "0" {
		t.Errorf("metadata after the flush: %q", page)
	}
	if page, code, _ := fetch(t, c, "http://web.test/who"); code != "0" {
		t.Errorf("the web after the flush: %s %q", code, page)
	}
	if strings.Contains(in.requests(t), "169.254.169.254") {
		t.Error("a request reached the metadata service")
	}
}

func TestNoEgress(t *testing.T) {
	startInternet(t)
	s := create(t, "--egress", "none", "--grace", "10m")
	c := connectable(t, s)
	if err := noBridge(s); err != nil {
		t.Error(err)
	}
	for _, url := range []string{"http://" + webAddr + "/who", "http://web.test/who", "http://169.254.169.254/who"} {
		if page, code, took := fetch(t, c, url); code == "0" || took > 3*time.Second {
			t.Errorf("%s: curl %s after %s: %q, want refused at once", url, code, took, page)
		}
	}
}

// While rules are missing and can't be made, bridges are down and no sandbox with a network is
// made; one without still is. A broken nft stands for one that went missing.
func TestNoNftNoNetwork(t *testing.T) {
	h := need(t)
	s := create(t, "--grace", "10m")
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(command("cp", nft, "/run/nft"), command("mount", "--bind", "/bin/false", nft)); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := command("umount", nft); err != nil {
			t.Error(err)
		}
		eventually(t, 10*time.Second, func() error { return command("sh", "-c", "ip -o link show "+bridge(s)+" | grep -q '[<,]UP[,>]'") })
		if err := h.awaitReady(); err != nil {
			t.Error(err)
		}
	}()
	if err := command("/run/nft", "delete", "table", "inet", "podspawn-egress"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, func() error { return absent("sh", "-c", "ip -o link show "+bridge(s)+" | grep '[<,]UP[,>]'; true") })
	r := run(t, nil, podspawn, "create", "without-rules")
	if r.code != 6 || !strings.Contains(r.stderr, "firewall rules") || !strings.Contains(r.stderr, "podspawn: hint: ") {
		t.Errorf("create: %v, want exit 6 and the remedy", r)
	}
	create(t, "--egress", "none")
}

// The resolver dies: names don't resolve, nothing else changes; it comes back.
func TestResolverKilled(t *testing.T) {
	h := need(t)
	startInternet(t)
	c := connectable(t, create(t, "--grace", "10m"))
	if err := h.end("resolver", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	restart := func() {
		if err := h.start("resolver", podspawn, "resolver"); err != nil {
			t.Fatal(err)
		}
	}
	if page, code, _ := fetch(t, c, "http://"+webAddr+"/who"); code != "0" {
		t.Errorf("by address: %s %q", code, page)
	}
	if page, code, _ := fetch(t, c, "http://web.test/who"); code == "0" {
		t.Errorf("by name without a resolver: %q", page)
	}
	restart()
	eventually(t, 20*time.Second, func() error {
		if page, code, _ := fetch(t, c, "http://web.test/who"); code != "0" {
			return fmt.Errorf("%s %q", code, page)
		}
		return nil
	})
	uid := strings.TrimSpace(run(t, nil, "id", "-u", "podspawn-dns").stdout)
	r := run(t, nil, "pgrep", "-U", uid)
	if len(strings.Fields(r.stdout)) != 1 {
		t.Errorf("processes of podspawn-dns: %v, want the resolver", r)
	}
}
