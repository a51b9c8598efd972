// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"bufio"
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReadLine(t *testing.T) {
	in := bufio.NewReader(strings.NewReader(
		`{"do":"set","link":"a-b","params":{"delay_ns":5000,"loss":0.5}}` + "\n" +
			`{"do":"set","lnik":"a-b"}` + "\n" +
			`{"do":"clear"} {"do":"clear"}` + "\n" +
			`nonsense` + "\n" +
			`{"do":"clear"}` + "\n" +
			`{"do":"cl`))
	var r request
	require.NoError(t, readLine(in, &r))
	require.Equal(t, request{Do: doSet, Link: "a-b", Params: &Params{Delay: 5000, Loss: 0.5}}, r)
	for _, what := range []string{"unknown field", "two values", "no JSON"} {
		require.ErrorAs(t, readLine(in, new(request)), new(badLine), what)
	}
	r = request{}
	require.NoError(t, readLine(in, &r), "a bad line spoils only itself")
	require.Equal(t, request{Do: doClear}, r)
	err := readLine(in, &r)
	require.Error(t, err)
	require.NotErrorAs(t, err, new(badLine), "the stream has ended")
}

// The child answers what it cannot do, line by line, and opens nothing.
func TestStartIsChecked(t *testing.T) {
	for name, line := range map[string]string{
		"another request":   `{"do":"clear"}`,
		"no options":        `{"do":"start"}`,
		"no links":          `{"do":"start","options":{}}`,
		"unknown option":    `{"do":"start","options":{"speed":1}}`,
		"unknown parameter": `{"do":"start","options":{"links":[{"name":"x","a":"a","b":"b","params":{"dealy_ns":1}}]}}`,
		"no interface":      `{"do":"start","options":{"links":[{"name":"x","a":"none0","b":"none1","params":{}}]}}`,
	} {
		var out bytes.Buffer
		c := newControl(strings.NewReader(line+"\n"), &out, schedulingOther)
		require.Error(t, c.start(), name)
		var a answer
		require.NoError(t, json.Unmarshal(out.Bytes(), &a), name)
		require.NotEmpty(t, a.Error, name)
	}
}

func TestMainTakesNoArguments(t *testing.T) {
	require.Error(t, Main([]string{"--link", "a,b,20ms"}, strings.NewReader(""), new(bytes.Buffer)))
}

func TestRequestsAreChecked(t *testing.T) {
	c := &control{index: map[string]int{"a-b": 0}}
	for name, r := range map[string]request{
		"nothing":           {},
		"unknown":           {Do: "dance"},
		"started already":   {Do: doStart, Options: &Options{}},
		"link to clear":     {Do: doClear, Link: "a-b"},
		"unknown link":      {Do: doSet, Link: "a-c", Params: &Params{}},
		"no parameters":     {Do: doSet, Link: "a-b"},
		"impossible values": {Do: doSet, Link: "a-b", Params: &Params{Loss: 2}},
	} {
		_, err := c.handle(&r)
		require.Error(t, err, name)
	}
}
