package install

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/podspawn/podspawn/sandbox"
)

// The fence around our lines in a file that others edit too.
const (
	fenceBegin = "# podspawn begin: keep these lines first in the session part (podspawn server-setup)\n"
	fenceEnd   = "# podspawn end\n"
)

// pamLines skip everybody but sandbox logins, by number, since with an empty
// group lookup a test by name would skip everybody. pam_usernet moves the
// connection into its portal; it ignores its own errors, so the hook that comes
// after it has the daemon compare namespaces. The fourth line ends the part for
// sandbox logins, before motd and mail print into sessions. The last one does
// nothing: it takes the jump when one of the lines above is lost.
func pamLines() string {
	return "session [success=3 default=ignore]  pam_succeed_if.so quiet gid ne " + strconv.Itoa(sandbox.LoginGID) + "\n" +
		"session requisite                   pam_usernet.so group=" + groupName + "\n" +
		"session requisite                   pam_exec.so quiet stdout " + HookPath + " pam-session\n" +
		"session [success=done default=die]  pam_permit.so\n" +
		"session optional                    pam_permit.so\n"
}

// insertPAM returns text with our lines first in its session part, whatever of
// them was there before.
func insertPAM(text string) (string, error) {
	text = removePAM(text)
	lines := strings.SplitAfter(text, "\n")
	at := -1
	for i, l := range lines {
		if isSessionLine(l) {
			at = i
			break
		}
	}
	if at < 0 {
		return "", refuse(pamPath+" has no session part", "reinstall openssh-server, or restore the file from its package")
	}
	for at > 0 && strings.HasPrefix(lines[at-1], "#") { // above the comment of what we go before
		at--
	}
	head := strings.Join(lines[:at], "")
	if head != "" && !strings.HasSuffix(head, "\n") {
		head += "\n"
	}
	return head + fenceBegin + pamLines() + fenceEnd + strings.Join(lines[at:], ""), nil
}

func isSessionLine(l string) bool {
	f := strings.Fields(l)
	if len(f) < 2 {
		return false
	}
	return strings.EqualFold(strings.TrimPrefix(f[0], "-"), "session") ||
		f[0] == "@include" && strings.Contains(f[1], "session")
}

// removePAM returns text without our fence and what is in it, and leaves every
// other byte alone. A fence without an end is left as it is: what follows may be
// somebody else's.
func removePAM(text string) string {
	begin := fenceIndex(text, fenceBegin)
	if begin < 0 {
		return text
	}
	end := fenceIndex(text[begin:], fenceEnd)
	if end < 0 {
		return text
	}
	return text[:begin] + text[begin+end+len(fenceEnd):]
}

// fenceIndex finds a fence at the beginning of a line.
func fenceIndex(text, fence string) int {
	if strings.HasPrefix(text, fence) {
		return 0
	}
	if i := strings.Index(text, "\n"+fence); i >= 0 {
		return i + 1
	}
	return -1
}

// nssDatabases need our logins: without shadow, PAM's account step denies them.
var nssDatabases = [...]string{"passwd", "group", "shadow"}

// insertNSS puts extrausers after files in the databases that lack it, and
// returns which those were.
func insertNSS(text string) (out string, added []string, err error) {
	lines := strings.SplitAfter(text, "\n")
	for _, db := range nssDatabases {
		i := nssLine(lines, db)
		if i < 0 {
			return "", nil, refuse(nssPath+" has no line for "+db, "add the line "+db+": files")
		}
		if wordIndex(lines[i], "extrausers") >= 0 {
			continue
		}
		word := "files"
		at := wordIndex(lines[i], word)
		if at < 0 {
			word = "compat"
			at = wordIndex(lines[i], word)
		}
		if at < 0 {
			return "", nil, refuse("the "+db+" line of "+nssPath+" does not use files", "add files to it as the first service")
		}
		at += len(word)
		lines[i] = lines[i][:at] + " extrausers" + lines[i][at:]
		added = append(added, db)
	}
	return strings.Join(lines, ""), added, nil
}

// removeNSS takes extrausers out of the databases that insertNSS added it to.
func removeNSS(text string, added []string) string {
	lines := strings.SplitAfter(text, "\n")
	for _, db := range added {
		i := nssLine(lines, db)
		if i < 0 {
			continue
		}
		if at := wordIndex(lines[i], "extrausers"); at > 0 {
			lines[i] = lines[i][:at-1] + lines[i][at+len("extrausers"):]
		}
	}
	return strings.Join(lines, "")
}

func nssLine(lines []string, db string) int {
	for i, l := range lines {
		if name, _, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(name) == db {
			return i
		}
	}
	return -1
}

// wordIndex finds a service in a line of nsswitch.conf, outside comments.
func wordIndex(line, word string) int {
	body, _, _ := strings.Cut(line, "#")
	_, services, ok := strings.Cut(body, ":")
	if !ok {
		return -1
	}
	from := len(body) - len(services)
	for from < len(body) {
		i := strings.Index(body[from:], word)
		if i < 0 {
			return -1
		}
		begin, end := from+i, from+i+len(word)
		if isBlank(body[begin-1]) && (end == len(body) || isBlank(body[end])) {
			return begin
		}
		if body[begin-1] == ':' && (end == len(body) || isBlank(body[end])) {
			return begin
		}
		from = end
	}
	return -1
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// groups are ours: the primary one of every sandbox login, and the relays'.
func groups() []group {
	return []group{{groupName, sandbox.LoginGID}, {relayGroup, sandbox.RelayGID}}
}

type group struct {
	name string
	gid  int
}

func (g group) line() string { return fmt.Sprintf("%s:x:%d:\n", g.name, g.gid) }

// groupLines are our groups' entries.
func groupLines() string {
	var b strings.Builder
	for _, g := range groups() {
		b.WriteString(g.line())
	}
	return b.String()
}

// insertGroups adds our groups to the text of a group file, or refuses when a
// name or number is taken.
func insertGroups(text, path string) (string, error) {
	for _, g := range groups() {
		have, err := g.find(text, path)
		if err != nil {
			return text, err
		}
		if have {
			continue
		}
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		text += g.line()
	}
	return text, nil
}

// checkGroups refuses a group file in which a name or number of ours is taken,
// and reports whether all of ours are in it.
func checkGroups(text, path string) (all bool, err error) {
	all = true
	for _, g := range groups() {
		have, err := g.find(text, path)
		if err != nil {
			return false, err
		}
		all = all && have
	}
	return all, nil
}

// find reports whether the group is in the text of a group file.
func (g group) find(text, path string) (bool, error) {
	gid := strconv.Itoa(g.gid)
	for l := range strings.Lines(text) {
		f := strings.Split(strings.TrimSuffix(l, "\n"), ":")
		if len(f) < 3 {
			continue
		}
		switch {
		case f[0] == g.name && f[2] == gid:
			return true, nil
		case f[0] == g.name:
			return false, refuse(fmt.Sprintf("%s has a group %s with gid %s, not %s", path, g.name, f[2], gid), "rename that group with groupmod -n NEW "+g.name)
		case f[2] == gid:
			return false, refuse(fmt.Sprintf("gid %s belongs to group %s in %s", gid, f[0], path), "give that group another gid with groupmod -g")
		}
	}
	return false, nil
}

// removeGroups takes our groups' lines out.
func removeGroups(text string) string {
	var b strings.Builder
	for l := range strings.Lines(text) {
		if !slices.ContainsFunc(groups(), func(g group) bool { return l == g.line() }) {
			b.WriteString(l)
		}
	}
	return b.String()
}
