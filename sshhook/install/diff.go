package install

import "strings"

// diff shows how a becomes b, by lines: "-", "+", and up to two lines around.
// Configuration files are short, so the quadratic way is good enough.
func diff(a, b string) string {
	x, y := splitLines(a), splitLines(b)
	// common[i][j] is the length of the longest common subsequence of x[i:] and y[j:].
	common := make([][]int, len(x)+1)
	for i := range common {
		common[i] = make([]int, len(y)+1)
	}
	for i := len(x) - 1; i >= 0; i-- {
		for j := len(y) - 1; j >= 0; j-- {
			if x[i] == y[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var marks []string
	i, j := 0, 0
	for i < len(x) || j < len(y) {
		switch {
		case i < len(x) && j < len(y) && x[i] == y[j]:
			marks = append(marks, "  "+x[i])
			i, j = i+1, j+1
		case j == len(y) || i < len(x) && common[i+1][j] >= common[i][j+1]:
			marks = append(marks, "- "+x[i])
			i++
		default:
			marks = append(marks, "+ "+y[j])
			j++
		}
	}
	return strings.Join(around(marks, 2), "\n")
}

// around keeps the changed lines and n lines on both sides.
func around(marks []string, n int) []string {
	keep := make([]bool, len(marks))
	for i, m := range marks {
		if m[0] == ' ' {
			continue
		}
		for k := max(0, i-n); k < min(len(marks), i+n+1); k++ {
			keep[k] = true
		}
	}
	var out []string
	for i, m := range marks {
		if keep[i] {
			out = append(out, m)
		}
	}
	return out
}

func splitLines(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(s, "\n"), "\n")
}
