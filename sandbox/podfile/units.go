package podfile

import (
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var (
	decimalPattern = regexp.MustCompile(`^[0-9]{1,15}(\.[0-9]{1,20})?$`)
	sizePattern    = regexp.MustCompile(`^([0-9]{1,19})(\.[0-9]{1,9})?([kmgt]?)(i?b)?$`)
)

// parseSize reads "2g", "512m", "1.5GiB" or bytes. Units are binary, as in Docker.
func parseSize(s string) (int64, bool) {
	m := sizePattern.FindStringSubmatch(strings.ToLower(s))
	if m == nil {
		return 0, false
	}
	shift := map[string]uint{"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[m[3]]
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil || n > math.MaxInt64>>shift || m[2] != "" && shift == 0 {
		return 0, false
	}
	n <<= shift
	if m[2] != "" {
		part, err := strconv.ParseFloat("0"+m[2], 64)
		if err != nil || n > math.MaxInt64-1<<shift {
			return 0, false
		}
		n += int64(part * float64(int64(1)<<shift))
	}
	return n, true
}

// parseDuration reads "90s", "1h30m" or seconds, and returns nanoseconds.
func parseDuration(s string) (int64, bool) {
	if decimalPattern.MatchString(s) {
		s += "s"
	}
	d, err := time.ParseDuration(s)
	return int64(d), err == nil && d >= 0
}

// parseDecimal reads a plain decimal number: no exponent, no hexadecimal, no infinity.
func parseDecimal(s string) (float64, bool) {
	if !decimalPattern.MatchString(s) {
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	return f, err == nil
}

// formatSize is the shortest spelling that parseSize reads as n.
func formatSize(n int64) string {
	for _, u := range []struct {
		shift uint
		name  string
	}{{40, "t"}, {30, "g"}, {20, "m"}, {10, "k"}} {
		if n > 0 && n&(1<<u.shift-1) == 0 {
			return strconv.FormatInt(n>>u.shift, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}
