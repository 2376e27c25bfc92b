package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"podspawn": main})
}

// TestScripts runs testdata/script: the program as a program, against a service
// of its own for each script, with ssh replaced by a script that tells what it
// was given.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			f, url := startFake(env.T().(testing.TB))
			env.Values["fake"] = f
			env.Setenv("PODSPAWN_SERVER", url)
			env.Setenv("PODSPAWN_TOKEN", goodToken)
			env.Setenv("HOME", env.WorkDir+"/home")
			env.Setenv("TMPDIR", env.WorkDir+"/tmp")
			env.Setenv("PATH", env.WorkDir+"/bin:"+env.Getenv("PATH"))
			for _, dir := range []string{"/home", "/tmp", "/bin"} {
				if err := os.MkdirAll(env.WorkDir+dir, 0o700); err != nil {
					return err
				}
			}
			return os.WriteFile(env.WorkDir+"/bin/ssh", []byte(fakeSSH), 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": cmdStatus, "empty": cmdEmpty, "calls": cmdCalls, "waitfile": cmdWaitfile,
		},
	})
}

// fakeSSH prints its arguments, one a line, and its environment's secrets, and
// keeps the folder that it was given to look at.
const fakeSSH = `#!/bin/sh
cp -a "$(dirname "$2")" "$WORK/seen"
stat -c '%a %n' "$(dirname "$2")" "$(dirname "$2")"/* | sed 's|/.*/||; s|podspawn-[0-9]*|podspawn|' >"$WORK/modes"
for a; do echo "arg: $a" | sed "s|$TMPDIR/podspawn-[0-9]*|TMP|"; done
env | grep PODSPAWN_TOKEN && echo "the token leaked"
exit ${FAKE_STATUS:-0}
`

// cmdStatus runs a program and compares its exit status: status N podspawn ARGS…
func cmdStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N program args…")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("%v: status %s, want %s", args[1:], got, args[0])
	}
}

// cmdWaitfile waits until a file exists.
func cmdWaitfile(ts *testscript.TestScript, _ bool, args []string) {
	deadline := time.Now().Add(20 * time.Second)
	for {
		if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s does not appear", args[0])
		}
		time.Sleep(5 * time.Millisecond) // polling another process
	}
}

// cmdEmpty asserts that a folder holds nothing.
func cmdEmpty(ts *testscript.TestScript, _ bool, args []string) {
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(entries) > 0 {
		ts.Fatalf("%s holds %v", args[0], entries)
	}
}

// cmdCalls compares the calls that the service has seen since the last time.
func cmdCalls(ts *testscript.TestScript, _ bool, args []string) {
	f := ts.Value("fake").(*fakeService)
	f.mu.Lock()
	defer f.mu.Unlock()
	if got, want := fmt.Sprint(f.calls), fmt.Sprint(args); got != want {
		ts.Fatalf("the service saw %s, want %s", got, want)
	}
	f.calls = nil
}
