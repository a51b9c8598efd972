// SPDX-License-Identifier: LGPL-3.0-or-later

package meshbench

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/ethmcast/mdcs/testnet"
	"github.com/ethmcast/mdcs/testnet/report"
	"github.com/ethmcast/mdcs/testnet/results"
	"github.com/ethmcast/mdcs/testnet/sim"
)

// Result is what a mesh of processes showed. Rates of control traffic are kbit/s that
// an RP sends to one RP neighbour, whole IPv6 packets: hellos, heartbeats, and TCP with its
// acknowledgements.
type Result struct {
	RPs     int    `json:"rps"`
	Mode    string `json:"mode"`
	Engine  string `json:"engine"`
	Sources int    `json:"sources"`          // RPs with a publisher
	Failed  string `json:"failed,omitempty"` // what it could not do; what follows was not measured

	CompleteS float64 `json:"complete_s"` // last start of a process, until all RPs knew all and had all routes
	ConvergeS float64 `json:"converge_s"` // and until all that is published came everywhere, once and in time

	// While nothing was published. RP neighbours are means per RP.
	ControlTree    float64 `json:"control_kbps_tree"`
	ControlOther   float64 `json:"control_kbps_other"`
	Adverts        float64 `json:"adverts_s"` // that an RP published of itself, per second
	Grafts         float64 `json:"grafts_s"`  // routes that an RP asked for, per second
	TreeNeighbours float64 `json:"tree_neighbours"`
	Others         float64 `json:"other_neighbours"`
	MemoryMiB      float64 `json:"memory_mib"` // resident, mean of the processes
	MemoryMaxMiB   float64 `json:"memory_max_mib"`
	CPUPercent     float64 `json:"cpu_percent"` // of one processor, mean of the processes

	// The ways of datagrams. Copies are those of one datagram on the lines between ASes,
	// means over the sources: on the busiest one, on all together, and on all together
	// by native multicast. Stretch is the delay from peer to peer, the least of 40 datagrams as a
	// busy machine only adds to it, over that of the direct path between hosts in their ASes.
	DepthMax          int     `json:"depth_max"`
	StretchP95        float64 `json:"stretch_p95"`
	StretchMax        float64 `json:"stretch_max"`
	LinkCopiesMax     float64 `json:"link_copies_max"`
	LinkCopies        float64 `json:"link_copies"`
	LinkCopiesOptimum float64 `json:"link_copies_optimum"`

	Retraced int `json:"retraced"` // times that the ways of a source changed while it was looked at

	// The deaths of hosts of inner RPs, at a rate of datagrams per second. HealS is the
	// longest time until all others got datagrams again and had all that they had missed.
	Deaths         int     `json:"deaths"`
	DeathRate      float64 `json:"death_rate"`
	HealS          float64 `json:"heal_s"`
	HealExpected   int     `json:"heal_expected"`
	HealLost       int     `json:"heal_lost"`
	HealLate       int     `json:"heal_late"` // by more than 0.5 s
	HealDuplicated int     `json:"heal_duplicated"`
	FalseDowns     int     `json:"false_downs"` // RP neighbours found dead that were not, until the churn

	// Churn: processes that were killed and started again.
	Kills      int `json:"kills"`
	Expected   int `json:"expected"` // datagrams times peers whose RP lived
	Lost       int `json:"lost"`
	Late       int `json:"late"` // by more than 0.5 s
	Duplicated int `json:"duplicated"`

	CPUPressure   float64 `json:"cpu_pressure"`     // share of the run in which some task waited for a processor
	WireLateP99us float64 `json:"wire_late_p99_us"` // how late the delay line was
}

// Report is what all meshes showed, of processes and simulated ones.
type Report struct {
	Name      string        `json:"name"`
	Started   time.Time     `json:"started"`
	Host      report.Host   `json:"host"`
	Notes     []string      `json:"notes"`
	Processes []*Result     `json:"processes"`
	Simulated []*sim.Result `json:"simulated"`
}

// notes explain figures that could be misread.
var notes = []string{
	"processes: rpd in network namespaces, spread over the ten ASes of the testnet; simulated: the same link state in simulated time, over an Internet of ten regions without BGP",
	"the ways of datagrams are those that the RPs' own counters show for the datagrams of one source at a time",
	"control traffic is what the delay line counts at the line of the sender, by source and destination, without Ethernet headers; of simulated meshes, the messages with all headers",
	"late and lost are before any repair between peers and RPs; what the cache of a new parent served is late, not lost",
	"duplicated are copies that reached a peer, who drops them",
	"with a CPU pressure above a half, times and losses are those of the machine",
}

// NewReport is an empty report of this machine.
func NewReport(name string) (*Report, error) {
	host, err := testnet.HostFacts()
	if err != nil {
		return nil, err
	}
	return &Report{
		Name: name, Started: time.Now().UTC().Truncate(time.Second), Host: host, Notes: notes,
		Processes: []*Result{}, Simulated: []*sim.Result{},
	}, nil
}

// JSON is the report as one object.
func (r *Report) JSON() ([]byte, error) { return results.JSON(r) }

// Table writes the report for people.
func (r *Report) Table(out io.Writer) error {
	if len(r.Processes) > 0 {
		fmt.Fprintf(out, "%s: meshes of processes; Linux %s, %d CPUs\n", r.Name, r.Host.Kernel, r.Host.CPUs)
		w := newTable(out, "rps\tmode\tengine\tconverge s\tkbit/s tree\tother\tMiB\tdepth\tstretch p95\tcopies\tall\toptimum\theal s\tat /s\tlost\ttwice\tchurn: lost\tlate\ttwice\tof\tfalse downs\tpressure\t")
		for _, p := range r.Processes {
			fmt.Fprintf(w, "%d\t%s\t%s\t%.1f\t%.1f\t%.1f\t%.0f\t%d\t%.2f\t%.1f\t%.1f\t%.1f\t%.2f\t%.0f\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%.0f %%\t\n",
				p.RPs, p.Mode, p.Engine, p.ConvergeS, p.ControlTree, p.ControlOther, p.MemoryMiB, p.DepthMax, p.StretchP95,
				p.LinkCopiesMax, p.LinkCopies, p.LinkCopiesOptimum, p.HealS, p.DeathRate, p.HealLost, p.HealDuplicated,
				p.Lost, p.Late, p.Duplicated, p.Expected, p.FalseDowns, 100*p.CPUPressure)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if len(r.Simulated) == 0 {
		return nil
	}
	if len(r.Processes) > 0 {
		fmt.Fprintln(out)
	}
	fmt.Fprintf(out, "%s: simulated meshes\n", r.Name)
	w := newTable(out, "rps\tmode\tlinks\tconverge s\tkbit/s tree\tother\tchurn: delivered\tlive\tlost\tduplicated\tfalse downs\theal s\tdepth\tstretch p95\tcopies\t")
	for _, s := range r.Simulated {
		fmt.Fprintf(w, "%d\t%s\t%.1f\t%.1f\t%.1f\t%.1f\t%.4f %%\t%.4f %%\t%d\t%d\t%d\t%.2f\t%d\t%.2f\t%.1f\t\n", s.RPs, s.Mode, s.Links, s.ConvergeS,
			s.ControlTree, s.ControlOther, 100*s.Delivered, 100*s.DeliveredLive, s.Lost, s.Duplicated, s.FalseDowns, s.HealS, s.DepthMax,
			s.StretchP95, s.LinkCopiesMax)
	}
	return w.Flush()
}

func newTable(out io.Writer, head string) *tabwriter.Writer {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, head)
	return w
}

// Names of the files in the directory of a result, besides the pictures.
const (
	ReportFile = "mesh.json"
	TableFile  = "mesh.txt"
)

// Write writes all files of the report to a directory, which it makes.
func (r *Report) Write(dir string) error {
	if err := results.Write(dir, ReportFile, r, TableFile, r.Table); err != nil {
		return err
	}
	return r.pictures(dir)
}
