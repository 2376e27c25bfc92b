// Testsum reads what `go test -json` prints and shows it like `go test` does:
// failures with their output, one line a package. Its last line counts.
//
//	go test -json ./... | testsum [-log FILE]
//	testsum -total [-failed N] FILE…   counts only, over the logs of earlier
//	                                   runs, and N failures that are no tests
//
// A test with subtests is counted by its subtests. A package that fails though
// none of its tests did (it does not build, it panicked) counts as one failure.
// The exit status is 1 when anything failed or nothing was there to count.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("testsum", flag.ContinueOnError)
	flags.SetOutput(stderr)
	logPath := flags.String("log", "", "keep the events in this file, for -total")
	failed := flags.Int("failed", 0, "with -total, add `N` failures that no event tells of")
	total := flags.Bool("total", false, "count the events of the files given")
	if err := flags.Parse(args); err != nil {
		return 2
	}

	s := newSummary(stdout)
	if *total {
		s.quiet = true
		s.failed = *failed
		for _, path := range flags.Args() {
			if err := s.readFile(path); err != nil {
				fmt.Fprintln(stderr, "testsum:", err)
				return 2
			}
		}
		return s.close()
	}

	var in io.Reader = stdin
	if *logPath != "" {
		f, err := os.Create(*logPath)
		if err != nil {
			fmt.Fprintln(stderr, "testsum:", err)
			return 2
		}
		defer f.Close()
		in = io.TeeReader(stdin, f)
	}
	if err := s.read(in); err != nil {
		fmt.Fprintln(stderr, "testsum:", err)
		return 2
	}
	return s.close()
}

// event is one line of go test -json; see go doc test2json.
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

// summary is not safe for concurrent use.
type summary struct {
	out   io.Writer
	quiet bool

	output  map[string][]string // of tests that have not ended, by package and test
	parents map[string]bool     // tests that have subtests
	blamed  map[string]bool     // tests that failed through a subtest
	failing map[string]bool     // packages with a failed test

	passed, failed, skipped int
	skips                   []string
}

func newSummary(out io.Writer) *summary {
	return &summary{
		out:     out,
		output:  make(map[string][]string),
		parents: make(map[string]bool),
		blamed:  make(map[string]bool),
		failing: make(map[string]bool),
	}
}

func (s *summary) readFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open a log: %w", err)
	}
	defer f.Close()
	return s.read(f)
}

func (s *summary) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			s.line(line)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read test events: %w", err)
		}
	}
}

// line takes one line; what is no event (a toolchain's complaint) is shown as it is.
func (s *summary) line(line []byte) {
	var e event
	if line[0] != '{' || json.Unmarshal(line, &e) != nil {
		s.printf("%s", line)
		return
	}
	key := e.Package + "\x00" + e.Test
	switch e.Action {
	case "run":
		for name := e.Test; strings.Contains(name, "/"); {
			name = name[:strings.LastIndex(name, "/")]
			s.parents[e.Package+"\x00"+name] = true
		}
	case "build-output":
		s.printf("%s", e.Output)
	case "output":
		if e.Test == "" {
			s.packageOutput(e.Output)
		} else {
			s.output[key] = append(s.output[key], e.Output)
		}
	case "pass", "fail", "skip":
		s.ended(e, key)
	}
}

// packageOutput shows go test's own lines, but not its bare PASS and FAIL.
func (s *summary) packageOutput(text string) {
	switch strings.TrimSpace(text) {
	case "PASS", "FAIL", "":
	default:
		s.printf("%s", text)
	}
}

func (s *summary) ended(e event, key string) {
	output := s.output[key]
	delete(s.output, key)
	if e.Test == "" {
		if e.Action == "fail" && !s.failing[e.Package] {
			s.failed++
			// A test that was running when the process died never ended: show it.
			for k, lines := range s.output {
				if strings.HasPrefix(k, e.Package+"\x00") {
					s.printf("%s", strings.Join(lines, ""))
					delete(s.output, k)
				}
			}
		}
		return
	}
	if e.Action == "fail" {
		s.printf("%s", strings.Join(output, ""))
	}
	if e.Action == "fail" {
		s.failing[e.Package] = true
		for name := e.Test; strings.Contains(name, "/"); {
			name = name[:strings.LastIndex(name, "/")]
			s.blamed[e.Package+"\x00"+name] = true
		}
	}
	if s.parents[key] && (e.Action != "fail" || s.blamed[key]) {
		return
	}
	switch e.Action {
	case "pass":
		s.passed++
	case "fail":
		s.failed++
	case "skip":
		s.skipped++
		s.skips = append(s.skips, e.Package+" "+e.Test+": "+skipReason(output))
	}
}

// skipReason is what the test said last, without go test's own decoration.
func skipReason(output []string) string {
	for i := len(output) - 1; i >= 0; i-- {
		text := strings.TrimSpace(output[i])
		if text != "" && !strings.HasPrefix(text, "---") && !strings.HasPrefix(text, "===") {
			return text
		}
	}
	return "no reason given"
}

func (s *summary) printf(format string, args ...any) {
	if !s.quiet {
		fmt.Fprintf(s.out, format, args...)
	}
}

func (s *summary) close() int {
	for _, skip := range s.skips {
		fmt.Fprintln(s.out, "skipped:", skip)
	}
	fmt.Fprintf(s.out, "%d passed, %d failed, %d skipped\n", s.passed, s.failed, s.skipped)
	if s.failed > 0 || s.passed+s.skipped == 0 {
		return 1
	}
	return 0
}
