// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/testnet/results"
)

// Result is what a measurement found. Rates of lines count all that a copy occupies
// on Ethernet (LineSize).
type Result struct {
	Name    string    `json:"name"`
	Started time.Time `json:"started"`
	Host    Host      `json:"host"`
	Packet  Packet    `json:"packet"`
	Rounds  int       `json:"rounds"`
	Notes   []string  `json:"notes"`

	Rows      []Row       `json:"rows"`
	Noise     []Noise     `json:"noise"`
	Compared  []Compared  `json:"compared"`
	Sustained []Sustained `json:"sustained"`
	Joins     []Joins     `json:"joins"`
	Memory    []Memory    `json:"memory"`
	Drop      []Drop      `json:"drop"`
	Flood     []Flood     `json:"flood"`
	Failed    []Failed    `json:"failed"`
}

// Failed is what could not be measured.
type Failed struct {
	Engine      string `json:"engine"`
	Subscribers int    `json:"subscribers,omitempty"`
	What        string `json:"what"`
	Error       string `json:"error"`
}

// Host is the machine. CPUPressure is the share of the run in which some task of the
// whole machine waited for a CPU.
type Host struct {
	Kernel      string `json:"kernel"`
	Processor   string `json:"processor"`
	CPUs        int    `json:"cpus"`
	Go          string `json:"go"`
	CPUPressure Figure `json:"cpu_pressure"`
}

// Packet has the sizes of the datagrams in bytes.
type Packet struct {
	Frame      int `json:"frame"` // without FCS
	IPv6       int `json:"ipv6"`
	UDPPayload int `json:"udp_payload"`
	Symbol     int `json:"symbol"`
	Line       int `json:"line"` // with preamble, FCS and gap
}

// Row is an engine that copies bursts of datagrams to subscribers.
type Row struct {
	Engine      string `json:"engine"`
	Again       bool   `json:"again,omitempty"` // the second measurement in each round
	Subscribers int    `json:"subscribers"`
	PerCopy     Figure `json:"ns_per_copy"` // that arrived
	Burst       int    `json:"burst"`
	LastCopy    Figure `json:"last_copy_ms"` // after the burst's first injection
	Rounds      int    `json:"rounds"`       // fewer than of the result where one takes seconds
	Copies      uint64 `json:"copies"`       // that arrived
	Lost        uint64 `json:"lost"`         // copies
	Duplicated  uint64 `json:"duplicated"`   // copies
	Gbit        Figure `json:"gbit_s"`
}

// lossRatio is the share of copies that did not arrive.
func (r *Row) lossRatio() float64 {
	if r.Lost == 0 {
		return 0
	}
	return float64(r.Lost) / float64(r.Lost+r.Copies)
}

// Noise is by how much two measurements of the same differ.
type Noise struct {
	Subscribers int    `json:"subscribers"`
	Burst       int    `json:"burst"`
	Ratio       Figure `json:"ratio"` // of the second to the first
}

// Compared is the time per copy of xdp in relation to that of bare, measured in turn. The
// load is "lone", single datagrams with pauses, or "sustained": as many datagrams as the
// window are in flight, and when the last of their copies has arrived the next follow.
// The window is the largest one, up to 4, at which bare loses nothing.
type Compared struct {
	Subscribers int    `json:"subscribers"`
	Load        string `json:"load"`
	Window      int    `json:"window"`
	Bare        Figure `json:"bare_ns_per_copy"`
	XDP         Figure `json:"xdp_ns_per_copy"`
	Ratio       Figure `json:"xdp_of_bare"`
	Noise       Figure `json:"bare_again_of_bare"`
	Lost        uint64 `json:"lost"` // copies, of both
}

// compare adds the comparison of times per copy, of bare, xdp, and bare again.
func (r *Result) compare(load string, n, window int, perCopy [3]float64, lost uint64) {
	bare, xdp, again := perCopy[0], perCopy[1], perCopy[2]
	r.Compared = append(r.Compared, Compared{
		Subscribers: n, Load: load, Window: window, Bare: Figure(bare), XDP: Figure(xdp),
		Ratio: Figure(xdp / bare), Noise: Figure(again / bare), Lost: lost,
	})
}

// compareLone adds the comparison of the rows of lone datagrams to n subscribers.
func (r *Result) compareLone(n int) {
	bare, xdp, again := r.find(Bare, false, n, 1), r.find(XDP, false, n, 1), r.find(Bare, true, n, 1)
	if bare == nil || xdp == nil || again == nil {
		return // a measurement of bursts alone
	}
	perCopy := [3]float64{float64(bare.PerCopy), float64(xdp.PerCopy), float64(again.PerCopy)}
	r.compare("lone", n, 1, perCopy, bare.Lost+xdp.Lost+again.Lost)
}

// Sustained is a steady load at a share of what the engine itself can do.
type Sustained struct {
	Engine      string `json:"engine"`
	Subscribers int    `json:"subscribers"`
	Seconds     Figure `json:"seconds"`
	Rate        Figure `json:"datagrams_s"`
	Share       Figure `json:"share_of_capacity"`
	Datagrams   uint64 `json:"datagrams"`
	Lost        int64  `json:"lost"` // copies; negative: too many
	Gbit        Figure `json:"gbit_s"`
}

// Joins is a time in which subscribers join and leave while datagrams flow. Lost and
// duplicated are copies to those who stayed.
type Joins struct {
	Engine     string `json:"engine"`
	Stayers    int    `json:"stayers"`
	Batch      int    `json:"batch"`   // sessions in one change
	Changes    int    `json:"changes"` // joins, and as many leaves
	JoinRate   Figure `json:"joins_s"`
	LeaveRate  Figure `json:"leaves_s"`
	Datagrams  uint64 `json:"datagrams"`
	Rate       Figure `json:"datagrams_s"`
	Lost       uint64 `json:"lost"`
	Duplicated uint64 `json:"duplicated"`
}

// Memory is what an engine occupies, in bytes: BPF maps, and Go's heap.
// Fixed is its part without subscribers, PerSubscriber is what each adds.
type Memory struct {
	Engine        string `json:"engine"`
	Subscribers   int    `json:"subscribers"`
	Maps          int64  `json:"map_bytes"`
	Heap          int64  `json:"heap_bytes"`
	Fixed         int64  `json:"fixed_bytes"`
	PerSubscriber Figure `json:"bytes_per_subscriber"`
}

// Drop is the time that the kernel's engine spends on a datagram that it refuses. The
// first verdict, not_ours, is of a frame that is left to the kernel: what each run
// costs at least.
type Drop struct {
	Engine      string `json:"engine"`
	Verdict     string `json:"verdict"`
	Nanoseconds Figure `json:"ns"`
}

// Flood is a time in which an engine got hostile datagrams besides honest ones, at an
// interface of their own or at the same one.
// Refused are those that it counted. Overrun are datagrams that found the ring of the
// engine's interface full, which no engine sees, HonestOverrun the honest ones among
// them. Other hostile datagrams overran a queue of the host. Lost are copies of the honest
// datagrams that reached the engine, Leaked copies of hostile ones.
type Flood struct {
	Engine        string `json:"engine"`
	Shared        bool   `json:"shared_port"`
	Subscribers   int    `json:"subscribers"`
	Hostile       uint64 `json:"hostile"`
	HostileRate   Figure `json:"hostile_s"`
	Refused       uint64 `json:"refused"`
	Leaked        uint64 `json:"leaked"`
	Honest        uint64 `json:"honest"`
	HonestRate    Figure `json:"honest_s"`
	Overrun       uint64 `json:"overrun"`
	HonestOverrun uint64 `json:"honest_overrun"`
	Lost          int64  `json:"lost"`
	LostShare     Figure `json:"lost_share"` // of the copies of honest datagrams that reached the engine
}

// notes explain figures that could be misread.
var notes = []string{
	"time runs from the injection of a burst's first datagram at the publisher's interface to the arrival of the last copy at the sink, on the kernel's clock; a row is the median over the rounds of the medians over the bursts of a round",
	"figures of one run may be compared, those of different runs not: compare ratios, and only differences above the noise",
	"bare, tc and sendmmsg rewrite addresses, port and checksum, and check and authenticate nothing",
	"sustained load: 60 % of what the engine itself did in its largest burst without loss, in batches of up to 64 datagrams; bare has no queue for these, so its losses there are no ground for a ratio",
	"xdp beside bare: lone datagrams, and a sustained load that bare bears: the next datagrams follow when the last copy of those before has arrived, 4 in flight, or 2 or 1 where bare would lose some of more",
	"flood, own port: the hostile datagrams come by another interface than the honest ones; shared port: by the same one, where both go through one ring of 256 frames before any program sees them; what the ring had no room for is overrun, and not lost by the engine",
	"subscribers are those besides the publisher, which gets an ECHO for each datagram from xdp and socket",
	"with losses, ns per copy is of the copies that arrived",
	"a copy occupies 1224 bytes of a line: frame, FCS, preamble and gap",
}

func newResult(cfg *Config) (*Result, error) {
	host, err := hostFacts()
	if err != nil {
		return nil, err
	}
	return &Result{
		Name:    cfg.Name,
		Started: time.Now().UTC().Truncate(time.Second),
		Host:    host,
		Packet:  Packet{FrameSize, PacketSize, UDPPayload, PayloadSize, LineSize},
		Rounds:  cfg.Rounds,
		Notes:   notes,
		Rows:    []Row{}, Noise: []Noise{}, Compared: []Compared{}, Sustained: []Sustained{}, Joins: []Joins{},
		Memory: []Memory{}, Drop: []Drop{}, Flood: []Flood{}, Failed: []Failed{},
	}, nil
}

func hostFacts() (Host, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Host{}, fmt.Errorf("read kernel version: %w", err)
	}
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return Host{}, fmt.Errorf("read processor: %w", err)
	}
	return Host{
		Kernel:    unix.ByteSliceToString(u.Release[:]),
		Processor: processor(string(text)),
		CPUs:      runtime.NumCPU(),
		Go:        runtime.Version(),
	}, nil
}

// processor finds the model in /proc/cpuinfo, empty where that does not say.
func processor(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// find returns the row of an engine, nil when there is none.
func (r *Result) find(engine string, again bool, subscribers, burst int) *Row {
	for i := range r.Rows {
		x := &r.Rows[i]
		if x.Engine == engine && x.Again == again && x.Subscribers == subscribers && x.Burst == burst {
			return x
		}
	}
	return nil
}

// compareBare adds the noise of the rows with n subscribers.
func (r *Result) compareBare(n int) {
	for i := range r.Rows {
		again := &r.Rows[i]
		if !again.Again || again.Subscribers != n {
			continue
		}
		ratio := math.NaN()
		if first := r.find(again.Engine, false, n, again.Burst); first != nil {
			ratio = float64(again.PerCopy / first.PerCopy)
		}
		r.Noise = append(r.Noise, Noise{n, again.Burst, Figure(ratio)})
	}
}

// JSON is the result as one object.
func (r *Result) JSON() ([]byte, error) { return results.JSON(r) }

// Names of the files in the directory of a result.
const (
	ResultFile = "fanout.json"
	TableFile  = "fanout.txt"
	SpeedFile  = "copies-per-second.svg"
	DelayFile  = "last-copy.svg"
)

// Write writes all files of the result to a directory, which it makes.
func (r *Result) Write(dir string) error {
	if err := r.writeFigures(dir); err != nil {
		return err
	}
	return r.pictures(dir)
}

// writeFigures writes the files without pictures.
func (r *Result) writeFigures(dir string) error {
	return results.Write(dir, ResultFile, r, TableFile, r.Table)
}
