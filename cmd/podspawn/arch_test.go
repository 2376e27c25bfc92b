package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/podspawn/podspawn/"

// allowed is the law of import directions: which of our packages a package may
// import, by the longest matching prefix. A new edge is a change to this table,
// with a reason in the commit.
var allowed = []struct {
	pkg     string
	imports []string // exact packages; a trailing /... takes what is below too
}{
	{"cmd/podspawn", []string{"agent/...", "sshhook/...", "sandbox/...", "ephemeralkeys", "sandbox"}},
	{"cmd/podspawn-hook", []string{"sshhook", "sandbox/localapi", "sandbox/fault"}},
	{"cmd/podspawn-guest", []string{"sandbox/guest/pid1"}},
	{"examples", []string{"agent/..."}},
	{"bench", []string{"agent/..."}},
	{"scripts", nil},
	{"e2e", nil},
	{"agent", []string{"agent/...", "sandbox", "sandbox/localapi", "sandbox/guest", "sandbox/podfile"}},
	// It plays the guest, with the guest's own file operations.
	{"agent/agenttest", []string{"sandbox", "sandbox/localapi", "sandbox/guest", "sandbox/guest/files"}},
	{"sshhook", []string{"sandbox", "sandbox/fault", "sandbox/localapi", "sandbox/guest"}},
	// Set-up makes the CAs and their files.
	{"sshhook/install", []string{"sandbox", "ephemeralkeys", "sshhook"}},
	// Steps at which tests kill a process; empty functions in what is installed.
	{"sandbox/fault", nil},
	{"sandbox", []string{"sandbox/fault"}},
	{"sandbox/localapi", []string{"sandbox"}},
	{"sandbox/podfile", []string{"sandbox"}},
	{"sandbox/docker", []string{"sandbox", "sandbox/fault"}},
	{"sandbox/docker/dockertest", []string{"sandbox/docker"}},
	// The base image is put into Docker by the one package that knows Docker.
	{"sandbox/image", []string{"sandbox", "sandbox/docker"}},
	{"sandbox/sqlstore", []string{"sandbox"}},
	{"sandbox/audit", []string{"sandbox"}},
	{"sandbox/portal", []string{"sandbox", "sandbox/fault"}},
	// Which addresses are public, and what a bridge is called, is the core's to say.
	{"sandbox/egress", []string{"sandbox"}},
	{"sandbox/resolver", []string{"sandbox"}},
	// Its errors are the core's, since they reach people.
	{"sandbox/guest", []string{"sandbox"}},
	{"sandbox/guest/pid1", []string{"sandbox/guest", "sandbox/guest/files", "sandbox/fault"}},
	{"sandbox/guest/files", []string{"sandbox/guest"}},
	{"sandbox/guest/sockets", []string{"sandbox", "sandbox/guest", "sandbox/fault"}},
	{"sandbox/daemon", []string{"sandbox", "sandbox/fault", "sandbox/localapi", "sandbox/guest", "ephemeralkeys"}},
	{"sandbox/runtimetest", []string{"sandbox"}},
	{"sandbox/storetest", []string{"sandbox"}},
	{"ephemeralkeys", nil},
}

// confined says in which of our trees alone an outside library may be imported.
var confined = map[string][]string{
	"github.com/docker/docker":     {"sandbox/docker"},
	"github.com/labstack/echo/v4":  {"agent/httpapi"},
	"github.com/mark3labs/mcp-go":  {"agent/mcpserver", "examples"},
	"github.com/golang-jwt/jwt/v5": {"agent/token"},
	"github.com/creack/pty":        {"sandbox/guest/pid1"},
	"github.com/pkg/sftp":          {"sandbox/guest/pid1"},
	"modernc.org/sqlite":           {"sandbox/sqlstore"},
	"database/sql":                 {"sandbox/sqlstore"},
	"github.com/goccy/go-yaml":     {"sandbox/podfile", "cmd/podspawn"},
	"github.com/spf13/cobra":       {"cmd/podspawn"},
	"github.com/google/nftables":   {"sandbox/portal", "sandbox/egress"},
	"golang.org/x/net/dns":         {"sandbox/resolver"},
	"net/http":                     {"agent", "cmd/podspawn", "examples", "bench", "sandbox/docker"},
	"golang.org/x/crypto/ssh":      {"ephemeralkeys", "agent", "cmd/podspawn", "sandbox/daemon", "sshhook/install"},
}

type listed struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	d := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, module)
		all = append(all, p)
	}
}

func TestImportsPointOneWay(t *testing.T) {
	all := packages(t)
	if len(all) < 10 {
		t.Fatalf("go list found %d packages", len(all))
	}
	for _, p := range all {
		rule := -1
		for i, a := range allowed {
			if below(p.ImportPath, a.pkg) && (rule < 0 || len(a.pkg) > len(allowed[rule].pkg)) {
				rule = i
			}
		}
		if rule < 0 {
			t.Errorf("%s is in no row of the table", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			if ours, ok := strings.CutPrefix(imp, module); ok && !permitted(ours, allowed[rule].imports) && !below(ours, p.ImportPath) {
				t.Errorf("%s imports %s, which the table does not allow", p.ImportPath, ours)
			}
			for lib, trees := range confined {
				if below(imp, lib) && !slices.ContainsFunc(trees, func(tree string) bool { return below(p.ImportPath, tree) }) {
					t.Errorf("%s imports %s, which belongs to %s alone", p.ImportPath, imp, strings.Join(trees, ", "))
				}
			}
		}
	}
}

func permitted(imp string, list []string) bool {
	return slices.ContainsFunc(list, func(a string) bool {
		tree, all := strings.CutSuffix(a, "/...")
		return imp == tree || all && below(imp, tree)
	})
}

// below reports whether path is tree or inside it.
func below(path, tree string) bool {
	return path == tree || strings.HasPrefix(path, tree+"/")
}

// The hook starts five times a login and the guest is in every sandbox: neither
// may grow a dependency that costs start-up time. The guest's SFTP server brings the
// SSH library along, unused.
func TestSmallBinariesStaySmall(t *testing.T) {
	for _, pkg := range []string{"cmd/podspawn-hook", "cmd/podspawn-guest"} {
		cmd := exec.Command("go", "list", "-deps", "./"+pkg)
		cmd.Dir = "../.."
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list -deps %s: %v", pkg, err)
		}
		for _, dep := range strings.Fields(string(out)) {
			for _, heavy := range []string{"net/http", "crypto/tls", "github.com/docker/docker", "github.com/spf13/cobra", "database/sql", "golang.org/x/crypto/ssh"} {
				if heavy == "golang.org/x/crypto/ssh" && pkg == "cmd/podspawn-guest" {
					continue
				}
				if below(dep, heavy) {
					t.Errorf("%s depends on %s", pkg, dep)
				}
			}
		}
	}
}
