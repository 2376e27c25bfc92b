package main

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const docsDir = "../../docs"

// commandTree returns the commands that the help shows, by path, without the root.
func commandTree(t *testing.T) map[string]*cobra.Command {
	t.Helper()
	a, _, _ := testApp(nil)
	all := make(map[string]*cobra.Command)
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		for _, child := range c.Commands() {
			if child.Hidden || child.Name() == "help" {
				continue
			}
			all[child.CommandPath()] = child
			walk(child)
		}
	}
	walk(newRootCommand(a))
	return all
}

// sections returns the text under each heading of a level.
func sections(t *testing.T, file, level string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(docsDir, file))
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	heading := ""
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		line := sc.Text()
		if strings.HasPrefix(line, "#") {
			heading, _ = strings.CutPrefix(line, level+" ")
			continue
		}
		out[heading] += line + "\n"
	}
	return out
}

var flagPattern = regexp.MustCompile("--([a-z][a-z-]*)")

// TestDocsCLIAgreesWithHelp: every command and flag is in docs/cli.md, and
// nothing else is.
func TestDocsCLIAgreesWithHelp(t *testing.T) {
	tree, docs := commandTree(t), sections(t, "cli.md", "###")
	for path, cmd := range tree {
		text, ok := docs[path]
		if !ok {
			t.Errorf("docs/cli.md has no section %q", path)
			continue
		}
		known := map[string]bool{"help": true}
		cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) { known[f.Name] = true })
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			known[f.Name] = true
			if !f.Hidden && f.Name != "help" && cmd.InheritedFlags().Lookup(f.Name) == nil && !strings.Contains(text, "--"+f.Name) {
				t.Errorf("docs/cli.md: %s lacks --%s", path, f.Name)
			}
		})
		for _, m := range flagPattern.FindAllStringSubmatch(text, -1) {
			if !known[m[1]] && !(path == "podspawn doctor" && m[1] == "quiet") {
				t.Errorf("docs/cli.md: %s has --%s, which does not exist", path, m[1])
			}
		}
	}
	for heading := range docs {
		if _, ok := tree[heading]; !ok && strings.HasPrefix(heading, "podspawn") {
			t.Errorf("docs/cli.md describes %q, which does not exist", heading)
		}
	}
}

// TestDocsHelpSaysHowItExits: exit codes are in the help of each command.
func TestDocsHelpSaysHowItExits(t *testing.T) {
	for path, cmd := range commandTree(t) {
		if !strings.Contains(cmd.UsageString(), "Exit codes: 0 ok") {
			t.Errorf("%s --help does not list the exit codes", path)
		}
		if cmd.Short == "" {
			t.Errorf("%s has no description", path)
		}
	}
}

// TestDocsJSONCoversCommands: every command that prints has its shape in docs/json.md.
func TestDocsJSONCoversCommands(t *testing.T) {
	var all strings.Builder
	for heading := range sections(t, "json.md", "##") {
		all.WriteString(heading + ",\n")
	}
	// These print what the sandbox or the log prints, or only have subcommands.
	without := map[string]bool{
		"podspawn ssh": true, "podspawn exec": true, "podspawn run": true, "podspawn mcp": true, "podspawn daemon": true, "podspawn serve": true, "podspawn resolver": true,
		"podspawn token": true, "podspawn ca": true, "podspawn image": true, "podspawn config": true,
	}
	for path := range commandTree(t) {
		if !without[path] && !strings.Contains(all.String(), path+",") {
			t.Errorf("docs/json.md has no shape for %s", path)
		}
	}
}

// TestDocsInstallListsTheConfiguration: every key with its default.
func TestDocsInstallListsTheConfiguration(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(docsDir, "install.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range defaultConfig().settings() {
		if !bytes.Contains(b, []byte("`"+s.key+"`")) {
			t.Errorf("docs/install.md does not explain %s", s.key)
		}
	}
	for _, key := range laterKeys {
		if !bytes.Contains(b, []byte("`"+key+"`")) {
			t.Errorf("docs/install.md does not say that %s is refused", key)
		}
	}
}

var shownCommand = regexp.MustCompile("(?:^|[`|(\t ])podspawn ((?:--[a-z]+ )?[a-z][a-z-]*)((?: [a-z][a-z-]*)?)")

// TestDocsNameOnlyCommandsThatExist: what a page tells people to type must be there.
func TestDocsNameOnlyCommandsThatExist(t *testing.T) {
	tree := commandTree(t)
	pages, err := filepath.Glob(docsDir + "/*.md")
	if err != nil {
		t.Fatal(err)
	}
	pages = append(pages, "../../README.md", "../../examples/claude-code/README.md", "../../examples/claude-code/CLAUDE.md")
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, code := range codeOf(string(b)) {
			for _, m := range shownCommand.FindAllStringSubmatch(code, -1) {
				if _, ok := tree["podspawn "+m[1]]; !ok && m[1] != "--help" {
					t.Errorf("%s: `podspawn %s` does not exist", page, m[1])
				}
			}
		}
	}
}

// codeOf returns the code spans and the lines of code blocks of a page.
func codeOf(page string) []string {
	var out []string
	block := false
	for line := range strings.SplitSeq(page, "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			block = !block
		case block:
			command, _, _ := strings.Cut(line, "#")
			out = append(out, command)
		default:
			for i, span := range strings.Split(line, "`") {
				if i%2 == 1 {
					out = append(out, span)
				}
			}
		}
	}
	return out
}

// TestDocsLinksLead: every relative link of the pages names a file.
func TestDocsLinksLead(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	for _, glob := range []string{"../../*.md", docsDir + "/*.md", "../../examples/*/*.md"} {
		pages, err := filepath.Glob(glob)
		if err != nil {
			t.Fatal(err)
		}
		for _, page := range pages {
			b, err := os.ReadFile(page)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range link.FindAllStringSubmatch(string(b), -1) {
				if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
					t.Errorf("%s: the link %s leads nowhere", page, m[1])
				}
			}
		}
	}
}
