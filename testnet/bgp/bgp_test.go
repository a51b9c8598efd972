// SPDX-License-Identifier: LGPL-3.0-or-later

package bgp

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/testnet/topology"
)

// The network of the tests: AS 7 is the provider of AS 300, a peer of AS 8, and
// at an exchange point with both, where AS 8 is heard by AS 7 only.
const small = `
[[as]]
name = "up"
number = 7
rp = true
[[as]]
name = "side"
number = 8
[[as]]
name = "stub"
number = 300
[[link]]
provider = "up"
customer = "stub"
[[link]]
peers = ["side", "up"]
[[ixp]]
name = "ix"
number = 80
[[ixp.member]]
as = "up"
[[ixp.member]]
as = "side"
export_to = ["up"]
[[ixp.member]]
as = "stub"
`

func load(t *testing.T) *topology.Topology {
	t.Helper()
	top, err := topology.Parse("small", []byte(small))
	require.NoError(t, err)
	return top
}

// TestConfig compares with files in testdata, which UPDATE_GOLDEN=1 writes anew.
func TestConfig(t *testing.T) {
	top := load(t)
	for _, router := range []string{"up", "stub", "ix"} {
		have := Config(top, router)
		file := filepath.Join("testdata", router+".conf")
		if os.Getenv("UPDATE_GOLDEN") != "" {
			require.NoError(t, os.MkdirAll("testdata", 0o755))
			require.NoError(t, os.WriteFile(file, have, 0o644))
		}
		want, err := os.ReadFile(file)
		require.NoError(t, err)
		if diff := cmp.Diff(string(want), string(have)); diff != "" {
			t.Errorf("%s (-want +have):\n%s", router, diff)
		}
	}
	require.Nil(t, Config(top, "nobody"))
}

// BIRD itself accepts the configuration of all speakers.
func TestConfigIsValid(t *testing.T) {
	bird, err := Find()
	if err != nil {
		t.Skip(err)
	}
	for _, name := range topology.Names() {
		top, err := topology.Load(name)
		require.NoError(t, err)
		checkConfigs(t, bird, top)
	}
	checkConfigs(t, bird, load(t))
}

func checkConfigs(t *testing.T, bird string, top *topology.Topology) {
	t.Helper()
	for _, s := range speakers(top) {
		file := filepath.Join(t.TempDir(), "bird.conf")
		require.NoError(t, os.WriteFile(file, []byte(s.config()), 0o600))
		out, err := exec.Command(bird, "-p", "-c", file).CombinedOutput()
		require.NoError(t, err, "%s: %s", s.name, out)
	}
}

// The lower number has the lower identifier, whatever its digits.
func TestIdentifier(t *testing.T) {
	for _, pair := range [][2]int{{1, 2}, {2, 10}, {255, 256}, {999, 9999}} {
		require.Negative(t, identifier(pair[0]).Compare(identifier(pair[1])), pair)
	}
}

func TestAskProtocols(t *testing.T) {
	ask := func(answer string) (map[string]string, error) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		go func() {
			defer theirs.Close()
			io.WriteString(theirs, "0001 BIRD 2.0.12 ready.\n")
			const question = "show protocols\n"
			asked := make([]byte, len(question))
			if _, err := io.ReadFull(theirs, asked); err == nil && string(asked) == question {
				io.WriteString(theirs, answer)
			}
		}()
		return askProtocols(ours)
	}
	states, err := ask("2002-Name       Proto      Table      State  Since         Info\n" +
		"1002-device1    Device     ---        up     10:00:00.001\n" +
		" bgp0       BGP        ---        up     10:00:00.002  Established\n" +
		" bgp1       BGP        ---        start  10:00:00.003  Active        Socket: Connection refused\n" +
		" bgp2       BGP        ---        down   10:00:00.004\n" +
		"0000 \n")
	require.NoError(t, err)
	require.Equal(t, map[string]string{"bgp0": Established, "bgp1": "Active", "bgp2": "down"}, states)

	_, err = ask("9001 syntax error, unexpected CF_SYM_UNDEFINED\n")
	require.ErrorContains(t, err, "syntax error")
	_, err = ask("100\n")
	require.ErrorContains(t, err, "unexpected answer")
	_, err = ask("1002-bgp0       BGP        ---\n")
	require.ErrorIs(t, err, io.EOF)
}
