"""PlanInfo, PlanRange: what is written reads back, what a machine may vary is borne, the rest is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqi_hpc.records.delivery import (
    PlanInfo,
    RangeRow,
    format_plan_info,
    format_plan_range,
    parse_plan_info,
    parse_plan_range,
    same_energy,
)
from mqi_hpc.records.form import FormatError

GOOD = "DICOM_PATIENT_ID,P1\nDICOM_BEAM_NUMBER,2\nSTOP_LAYER_NUMBER,3\n"
HEADER = "LAYER_NO,LAYER_ENERGY,DOSE1_RANGE,SCAN_OUT_FL_NM\n"

letters = st.characters(
    codec="utf-8", exclude_categories=("Cc", "Zs", "Zl", "Zp"), exclude_characters=",\ufeff"
)
words = st.text(letters, min_size=1, max_size=12).filter(lambda text: text == text.strip())
infos = st.builds(
    lambda patient, study, beam, start, more, when: PlanInfo(
        patient_id=patient,
        study_uid=study,
        beam_number=beam,
        start_layer=start,
        stop_layer=start + more,
        irradiated=when,
    ),
    words,
    st.just("") | words,
    st.integers(0, 9999),
    st.integers(1, 99),
    st.integers(0, 99),
    st.just("")
    | st.datetimes().filter(lambda when: when.year >= 1000).map(lambda when: f"{when:%Y%m%d%H%M%S}"),
)


@given(infos)
def test_plan_info_reads_back(info: PlanInfo) -> None:
    assert parse_plan_info(format_plan_info(info, {"SHARE_DIR": r"\\x\y"}), "PlanInfo.txt") == info


@given(st.lists(st.floats(1, 400), min_size=1, max_size=5), st.sampled_from("2345"))
def test_plan_range_reads_back(energies: list[float], digit: str) -> None:
    rows = [
        {"LAYER_NO": str(n), "LAYER_ENERGY": repr(e), "DOSE1_RANGE": digit, "SCAN_OUT_FL_NM": f'"{n}", a.ptn'}
        for n, e in enumerate(energies, start=1)
    ]
    wanted = [RangeRow(n, e, digit, f'"{n}", a.ptn') for n, e in enumerate(energies, start=1)]
    assert parse_plan_range(format_plan_range(rows), "PlanRange.txt") == wanted


@given(st.text())
def test_rubbish_is_refused_in_words_or_read(text: str) -> None:
    for parse in (parse_plan_info, parse_plan_range):
        try:
            parse(text, "the file")
        except FormatError as error:
            assert str(error).startswith("the file: ")


@given(st.binary())
def test_rubbish_behind_a_good_header_is_refused_in_words_or_read(content: bytes) -> None:
    text = content.decode("latin-1")
    for parse, good in ((parse_plan_info, GOOD), (parse_plan_range, HEADER)):
        try:
            parse(good + text, "the file")
        except FormatError as error:
            assert str(error).startswith("the file: ")


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("\n", "\r"),
        "\ufeff" + GOOD,
        "\n\n" + GOOD.replace("\n", "\n\n"),
        GOOD.replace("\n", ",,\n"),
        GOOD.lower().replace("p1", "P1"),
        GOOD.replace(",", " , ").replace("\n", " \t\n"),
        GOOD + "SOMETHING_NEW,1,2,3\nEMPTY,\n",
        GOOD + GOOD,
        GOOD.replace("2", "2.0").replace("3", "3."),
    ],
)
def test_what_a_machine_may_vary(text: str) -> None:
    info = parse_plan_info(text, "PlanInfo.txt")
    assert info == PlanInfo("P1", "", 2, 1, 3, "")


def test_a_patient_id_may_hold_blanks_and_commas() -> None:
    assert parse_plan_info(GOOD.replace("P1", "A B, C"), "f").patient_id == "A B, C"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("DICOM_PATIENT_ID,P1\n", "", "DICOM_PATIENT_ID is missing"),
        ("DICOM_PATIENT_ID,P1\n", "DICOM_PATIENT_ID, \n", "DICOM_PATIENT_ID is missing"),
        ("DICOM_BEAM_NUMBER,2\n", "", "DICOM_BEAM_NUMBER is missing"),
        ("NUMBER,2", "NUMBER,2.5", "DICOM_BEAM_NUMBER should be a whole number, not '2.5'"),
        ("NUMBER,2", "NUMBER,-2", "whole number"),
        ("NUMBER,2", "NUMBER,٢", "whole number"),
        ("NUMBER,2", "NUMBER,1234567", "whole number"),
        ("STOP_LAYER_NUMBER,3\n", "", "STOP_LAYER_NUMBER is missing"),
        ("NUMBER,3", "NUMBER,0", "layers 1 to 0 are no range"),
        ("STOP", "START_LAYER_NUMBER,4\nSTOP", "layers 4 to 3 are no range"),
        ("STOP", "START_LAYER_NUMBER,0\nSTOP", "layers 0 to 3 are no range"),
        ("STOP", "START_LAYER_NUMBER,x\nSTOP", "START_LAYER_NUMBER should be"),
        ("STOP", "just words\nSTOP", "line 3 is not `KEY,VALUE`"),
        ("STOP", "DICOM_BEAM_NUMBER,3\nSTOP", "DICOM_BEAM_NUMBER stands in it twice"),
        ("STOP", "TCSC_IRRAD_DATETIME,20269999999999\nSTOP", "TCSC_IRRAD_DATETIME should be 16 digits"),
        ("STOP", "TCSC_IRRAD_DATETIME,20260102\nSTOP", "TCSC_IRRAD_DATETIME should be 16 digits"),
    ],
)
def test_a_wrong_plan_info_is_refused(old: str, new: str, said: str) -> None:
    with pytest.raises(FormatError, match=f"^PlanInfo.txt: .*{said}"):
        parse_plan_info(GOOD.replace(old, new), "PlanInfo.txt")


def test_a_refusal_does_not_tell_the_patient() -> None:
    with pytest.raises(FormatError) as error:
        parse_plan_info("DICOM_PATIENT_ID,SECRET1\nDICOM_PATIENT_ID,SECRET2\n", "f")
    assert "SECRET" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "missing: LAYER_NO, LAYER_ENERGY, DOSE1_RANGE"),
        ("1,100,2,a.ptn\n", "should name the columns"),
        ("LAYER_NO,LAYER_ENERGY\n1,100\n", "missing: DOSE1_RANGE"),
        (HEADER + "x,100,2,a\n", "LAYER_NO should be a whole number"),
        (HEADER + ",100,2,a\n", "LAYER_NO is missing"),
        (HEADER + "1,,2,a\n", "LAYER_ENERGY of layer 1"),
        (HEADER + "1,nan,2,a\n", "LAYER_ENERGY of layer 1"),
        (HEADER + "1,inf,2,a\n", "LAYER_ENERGY of layer 1"),
        (HEADER + "1,-5,2,a\n", "LAYER_ENERGY of layer 1"),
        (HEADER + "1,100,2,a\n1,99,2,b\n", "layer 1 stands in it twice"),
        (HEADER + '1,100,2,"a\n', "PlanRange.txt: "),
        (HEADER + "1,100,2,a\n" * 1000, "has 1000 rows, fewer than 1000 layers are expected"),
    ],
)
def test_a_wrong_plan_range_is_refused(text: str, said: str) -> None:
    with pytest.raises(FormatError, match=f"^PlanRange.txt: .*{said}|^{said}"):
        parse_plan_range(text, "PlanRange.txt")


def test_plan_range_by_name_of_column() -> None:
    text = "\ufeffdose1_range, LAYER_ENERGY ,Layer_No,more,\r\n\r\n 3 , 99.5 , 1 ,x,,\r\n2,98,2\r\n"
    assert parse_plan_range(text, "f") == [RangeRow(1, 99.5, "3", ""), RangeRow(2, 98.0, "2", "")]


def test_whole_numbers_may_be_written_as_fractions() -> None:
    assert parse_plan_range(HEADER + "1.0,100.0,3.0,a\n", "f") == [RangeRow(1, 100.0, "3", "a")]
    assert parse_plan_range(HEADER + "1,100,3.5,a\n", "f")[0].dose1_range == "3.5"


def test_same_energy() -> None:
    assert same_energy(123.45, 123.5)
    assert same_energy(123.5, 123.45)
    assert not same_energy(123.4, 123.5)
