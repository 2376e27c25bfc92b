package main

import "github.com/spf13/cobra"

type configResult struct {
	Settings []configEntry `json:"settings"`
}

type configEntry struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Source string `json:"source"`
}

func newConfigCommand(a *app) *cobra.Command {
	return parent("config", "the configuration of the service", groupAdmin, &cobra.Command{
		Use: "show", Short: "print every key, its value, and where that came from", Args: exact(),
		RunE: func(*cobra.Command, []string) error { return runConfigShow(a) },
	})
}

func runConfigShow(a *app) error {
	c, err := a.loadConfig(nil)
	if err != nil {
		return err
	}
	var out configResult
	rows := [][]string{{"KEY", "VALUE", "SOURCE"}}
	for _, s := range c.settings() {
		source := c.sources[s.key]
		if source == "" {
			source = "default"
		}
		out.Settings = append(out.Settings, configEntry{Key: s.key, Value: s.get(), Source: source})
		rows = append(rows, []string{s.key, s.get(), source})
	}
	if a.json {
		return a.printJSON(out)
	}
	return printTable(a.stdout, rows)
}
