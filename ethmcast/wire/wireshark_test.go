// SPDX-License-Identifier: LGPL-3.0-or-later

package wire_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// pcap returns a capture file (LINKTYPE_USER0) of bare datagrams.
func pcap(datagrams [][]byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	b = binary.LittleEndian.AppendUint16(b, 2)
	b = binary.LittleEndian.AppendUint16(b, 4)
	b = append(b, make([]byte, 8)...)
	b = binary.LittleEndian.AppendUint32(b, 65535)
	b = binary.LittleEndian.AppendUint32(b, 147)
	for _, d := range datagrams {
		b = append(b, make([]byte, 8)...)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(d)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(d)))
		b = append(b, d...)
	}
	return b
}

// The dissector shows the fields of the golden vectors as Parse does.
func TestWiresharkDissector(t *testing.T) {
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("tshark is not installed")
	}
	var datagrams [][]byte
	var want []string
	for _, v := range load(t).Vectors {
		h, _, verdict := wire.Parse(v.Datagram)
		if verdict != wire.Pass {
			continue
		}
		datagrams = append(datagrams, v.Datagram)
		fields := fmt.Sprintf("%d|%d|%d|%016x|", h.ESI, h.K, h.ObjectLen, h.ObjectID)
		if h.Type == wire.LinkHello {
			fields = fmt.Sprintf("||||%x", wire.HelloOf(v.Datagram))
		}
		want = append(want, fmt.Sprintf("%d|0x%08x|%d|%s", h.Type, h.Session, h.Sequence, fields))
	}
	file := filepath.Join(t.TempDir(), "vectors.pcap")
	if err := os.WriteFile(file, pcap(datagrams), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tshark, "-n", "-r", file, "-X", "lua_script:wireshark/mdcs.lua",
		"-o", `uat:user_dlts:"User 0 (DLT=147)","mdcs","0","","0",""`, "-T", "fields", "-E", "separator=|",
		"-e", "mdcs.type", "-e", "mdcs.session", "-e", "mdcs.seq", "-e", "mdcs.esi", "-e", "mdcs.k", "-e", "mdcs.object_len", "-e", "mdcs.object_id",
		"-e", "mdcs.hello")
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, stderr.String())
	}
	got := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(got) != len(want) {
		t.Fatalf("%d datagrams dissected, want %d\n%s", len(got), len(want), stderr.String())
	}
	for i := range want {
		if strings.ReplaceAll(got[i], ":", "") != want[i] {
			t.Errorf("datagram %d: %s, want %s", i, got[i], want[i])
		}
	}
}
