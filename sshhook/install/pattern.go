package install

import "strings"

const (
	sandboxPattern = "sbx-*"
	loginAlphabet  = "0123456789abcdefghjkmnpqrstvwxyz"
)

// loginSets is any sandbox login, as the set of characters at each place.
func loginSets() []string {
	sets := literalSets("sbx-")
	for range 16 {
		sets = append(sets, loginAlphabet)
	}
	return sets
}

func literalSets(s string) []string { return strings.Split(s, "") }

// mayMatch reports whether an sshd pattern (* and ?) matches some string that
// takes its characters from sets.
func mayMatch(pattern string, sets []string) bool {
	// at[i] says that the pattern so far can have matched i characters.
	at := make([]bool, len(sets)+1)
	at[0] = true
	for _, c := range strings.ToLower(pattern) { // sshd compares user names exactly; lower is the cautious side
		next := make([]bool, len(at))
		for i, ok := range at {
			switch {
			case !ok:
			case c == '*':
				for k := i; k < len(at); k++ {
					next[k] = true
				}
			case i < len(sets) && (c == '?' || strings.ContainsRune(sets[i], c)):
				next[i+1] = true
			}
		}
		at = next
	}
	return at[len(sets)]
}
