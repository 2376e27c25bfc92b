package api

import (
	"encoding/json"
	"fmt"
	"time"
)

// Duration is a time.Duration that JSON writes as a string ("90s") and reads as
// a string or a number of seconds.
type Duration time.Duration

// MarshalJSON writes the form of time.Duration.String.
func (d Duration) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Duration(d).String())
}

// UnmarshalJSON reads "90s" or 90. Negative durations are errors.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	var got time.Duration
	switch v := v.(type) {
	case float64:
		if v < 0 || v > 1e9 {
			return fmt.Errorf("duration of %g seconds is out of range", v)
		}
		got = time.Duration(v * float64(time.Second))
	case string:
		var err error
		if got, err = time.ParseDuration(v); err != nil {
			return fmt.Errorf("%q is no duration; write it like 90s, 30m or 2h", clip(v))
		}
	default:
		return fmt.Errorf("a duration is a string like 90s, or seconds")
	}
	if got < 0 {
		return fmt.Errorf("a duration is not negative")
	}
	*d = Duration(got)
	return nil
}

func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}
