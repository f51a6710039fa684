"""What the log says, in Korean and English.

A text is found by its key. `{fields}` are filled from the details of the event; details without a field follow the text
as `key=value`, so a text names only what its sentence needs.
"""

from collections.abc import Iterable
from string import Formatter
from typing import Literal

Language = Literal["ko", "en"]

# key: (Korean, English)
TEXTS: dict[str, tuple[str, str]] = {
    # a connection
    "connect": ("WebSocket 연결", "WebSocket connected"),
    "subscribe": ("구독 요청", "subscribing"),
    "collect_start": ("데이터 수집 시작", "collecting started"),
    "first_data": ("첫 데이터 수신", "first data received"),
    "ws_error": ("WebSocket 에러: {error}", "WebSocket error: {error}"),
    "api_error": ("API 에러: {error}", "API error: {error}"),
    "parse_failed": ("메시지 처리 중 예외: {error}", "exception while reading a message: {error}"),
    "close": ("WebSocket 연결 종료", "WebSocket closed"),
    "retry": ("연결 실패: {error}; 재연결 대기", "connection failed: {error}; waiting to reconnect"),
    "reconnect": ("재연결 시도", "reconnecting"),
    "key_refused": (
        "거래소가 API 키를 거부하여 키 없이 연결: {error}",
        "the exchange refused the API key, connecting without it: {error}",
    ),
    "rate_limited": ("요청 제한에 걸려 대기", "rate limited, waiting"),
    "silent": ("구독했으나 데이터 없음", "subscribed, but no data"),
    "stale": ("수신이 끊겨 재연결", "nothing is heard any more, reconnecting"),
    # polling
    "poll_start": ("폴링 스레드 시작", "polling thread started"),
    "poll_stop": ("폴링 스레드 종료", "polling thread stopped"),
    "poll_error": ("폴링 API 에러: {error}", "API error while polling: {error}"),
    "poll_unexpected": ("폴링 중 처리되지 않은 예외: {error}", "unhandled exception while polling: {error}"),
    "poll_recovered": ("폴링 복구", "polling works again"),
    # the truth of the data
    "rejected": ("해석할 수 없는 메시지를 원본 그대로 보관: {reason}", "message not understood, kept raw: {reason}"),
    "crossed": ("매수호가가 매도호가 이상인 호가창, 표시하여 저장", "crossed book, stored with its flag"),
    "checksum_mismatch": (
        "호가 합계가 거래소의 값과 다름, 표시하여 저장",
        "the sums of the book are not the exchange's, stored with its flag",
    ),
    "probe_agreed": ("REST 호가와 일치", "the book agrees with REST"),
    "probe_failed": ("REST 호가 확인 실패: {error}", "the book could not be compared with REST: {error}"),
    "book_broken": ("호가 연속성 깨짐, 다시 받음", "the book broke and is begun anew"),
    "snapshot_failed": ("REST 호가 스냅샷 실패", "the REST snapshot failed"),
    "leaving": ("거래소가 곧 연결을 끊음", "the exchange is about to close the connection"),
    "probe_differs": ("REST 호가와 불일치", "the book differs from REST"),
    "silences_new": ("무수신 간격 기록이 없어 새로 학습", "no known silences yet, learning them anew"),
    "silences_lost": (
        "무수신 간격 기록을 읽을 수 없어 새로 학습: {error}",
        "the known silences can't be read, learning them anew: {error}",
    ),
    "silences_unsaved": (
        "무수신 간격 기록 저장 실패, 다음에 재시도: {error}",
        "the known silences can't be saved, tried again later: {error}",
    ),
    "clock_step": ("시스템 시계가 바뀌어 새 구간 시작", "the clock of this machine was set, a new epoch starts"),
    "no_space": ("저장 대기 공간 부족으로 데이터 누락", "no room left for waiting data, data is dropped"),
    "live_callback": ("구독 콜백에서 예외: {error}", "a subscribed callback raised: {error}"),
    "live_failed": ("실시간 조회 갱신 중 예외: {error}", "exception in the live view: {error}"),
    # why an epoch ended
    "epoch_disconnect": ("구간 종료: 연결 끊김", "epoch ended: disconnected"),
    "epoch_stale": ("구간 종료: 수신 없음", "epoch ended: nothing was heard"),
    "epoch_sequence": ("구간 종료: 순번 불일치", "epoch ended: sequence broken"),
    "epoch_checksum": ("구간 종료: 체크섬 불일치", "epoch ended: checksum mismatch"),
    "epoch_rejected": ("구간 종료: 해석 불가 메시지", "epoch ended: a message was rejected"),
    "epoch_probe": ("구간 종료: REST 호가와 불일치", "epoch ended: the book differed from REST"),
    "epoch_stop": ("구간 종료: 정지", "epoch ended: stopped"),
    "epoch_crash": ("구간 종료: 비정상 종료", "epoch ended: crashed"),
    "epoch_clock": ("구간 종료: 시계 변경", "epoch ended: the clock was set"),
    "epoch_no_space": ("구간 종료: 공간 부족", "epoch ended: no space"),
    "epoch_damaged": ("구간 종료: 임시 보관 파일 손상", "epoch ended: the spool was damaged"),
    "epoch_superseded": ("구간 종료: 새 연결로 교체", "epoch ended: superseded by a new connection"),
    # the daemon
    "daemon_start": ("수집기 시작", "collector started"),
    "daemon_stop": ("수집기 종료", "collector stopped"),
    "stop_asked": ("종료 요청 수신", "asked to stop"),
    "stop_at_once": ("두 번째 종료 요청, 즉시 종료", "asked to stop a second time, leaving at once"),
    "config_reloaded": ("설정 다시 읽음", "configuration reloaded"),
    "config_refused": (
        "설정을 적용할 수 없어 변경하지 않음 ({kind}): {error}",
        "the configuration can't be applied, nothing was changed ({kind}): {error}",
    ),
    "restart_needed": (
        "재시작해야 바뀌는 설정이라 이전 값을 유지: {kind}",
        "only a restart can change this setting, it stays as it was: {kind}",
    ),
    "reload_unsupported": (
        "실행 중 설정 변경은 지원하지 않음, 재시작 필요",
        "settings can't be changed while running, restart the collector",
    ),
    # the markets an exchange lists
    "markets_listed": ("거래소의 마켓 목록을 받음", "the exchange has told its markets"),
    "market_listed": ("새로 상장된 마켓: {market}", "newly listed market: {market}"),
    "market_missing": (
        "마켓 목록에 없음, 한 시간 뒤 다시 확인: {market}",
        "market missing from the list, looked for again in an hour: {market}",
    ),
    "market_delisted": ("상장 폐지된 마켓: {market}", "market is not listed any more: {market}"),
    "listing_failed": (
        "마켓 목록을 받을 수 없어 나중에 재시도: {error}",
        "the list of markets can't be had, tried again later: {error}",
    ),
    "left_out": ("이 거래소에 없어 제외: {kind}", "left out, this exchange does not offer it: {kind}"),
    "metrics_on": ("메트릭 포트 열림", "metrics port open"),
    "metrics_port_taken": (
        "메트릭 포트를 열 수 없어 메트릭 없이 수집 계속",
        "the metrics port can't be opened, collecting goes on without it",
    ),
    "log_lost": ("로그를 기록하지 못한 동안 누락된 줄", "lines lost while the log could not be written"),
    "supervisor_failed": (
        "감독 스레드의 예상하지 못한 예외, 계속함: {error}",
        "unexpected exception in the supervisor, it goes on: {error}",
    ),
    "supervisor_gave_up": ("감독 스레드가 계속 실패하여 종료", "the supervisor keeps failing, the program ends"),
    # workers
    "worker_failed": ("예상하지 못한 예외: {error}", "unexpected exception: {error}"),
    "worker_died": ("작업 스레드 비정상 종료: {worker}", "worker died: {worker}"),
    "worker_restarted": ("작업 스레드 재시작: {worker}", "worker restarted: {worker}"),
    "worker_stuck": ("작업 스레드 응답 없음: {worker}", "worker is stuck: {worker}"),
    "worker_parked": (
        "작업 스레드가 계속 죽어 한동안 쉬게 함: {worker}",
        "worker keeps dying and is left alone: {worker}",
    ),
    "takeover_started": ("새 연결이 이어받을 준비 시작: {worker}", "a new connection prepares to take over: {worker}"),
    "takeover_done": ("새 연결이 이어받음: {worker}", "the new connection has taken over: {worker}"),
    "takeover_failed": (
        "새 연결이 이어받지 못해 이전 연결을 유지, 나중에 재시도: {worker}",
        "the new connection could not take over, the old one goes on, tried again later: {worker}",
    ),
    "worker_abandoned": ("멈추지 않는 작업 스레드를 포기: {worker}", "worker does not stop and is abandoned: {worker}"),
    # the store
    "store_opened": ("저장소 열림", "store opened"),
    "store_migrated": ("저장소 스키마 갱신", "store migrated"),
    "store_newer": (
        "더 새로운 버전의 저장소, 수집기 업데이트 필요",
        "the store is from a newer version, update the collector",
    ),
    "store_not_ours": ("수집기의 데이터베이스가 아님", "the file is no database of the collector"),
    "store_in_use": ("다른 수집기가 사용 중인 저장소", "the store is in use by another collector"),
    "writer_failed": ("저장 실패, 보관 후 재시도: {error}", "writing failed, kept for another try: {error}"),
    "writer_recovered": ("저장 복구", "writing works again"),
    "spool_started": (
        "저장소를 쓸 수 없어 디스크에 임시 보관: {error}",
        "the store can't be written, records are kept in the spool: {error}",
    ),
    "spool_left": (
        "이전 실행이 남긴 임시 보관분을 저장소로 옮김",
        "bringing to the store what an earlier run left in the spool",
    ),
    "spool_drained": ("임시 보관분을 모두 저장", "everything kept in the spool is stored"),
    "spool_failed": ("임시 보관 실패, 메모리에 보관: {error}", "the spool can't be written, kept in memory: {error}"),
    "spool_dropped": (
        "임시 보관 공간이 가득 차 가장 오래된 데이터를 버림",
        "the spool is full, its oldest records are dropped",
    ),
    "spool_cut": ("임시 보관 파일의 끊긴 끝을 잘라 냄", "a torn end of the spool was cut off"),
    "spool_damaged": (
        "임시 보관 파일 손상, 읽을 수 없는 부분을 건너뜀",
        "the spool is damaged, what can't be read is left out",
    ),
    "writer_died": ("저장 스레드 비정상 종료", "the writer died"),
    "writer_abandoned": ("멈추지 않는 저장 스레드를 포기", "the writer does not stop and is abandoned"),
    "retention": ("보관 기간이 지난 데이터 삭제", "data beyond its retention deleted"),
    "housekeeping_failed": (
        "정리 작업 실패, 다음에 재시도: {error}",
        "housekeeping failed, tried again later: {error}",
    ),
    "backup": ("백업 완료", "backup written"),
    "backup_failed": ("백업 실패: {error}", "backup failed: {error}"),
    "export": ("내보내기 완료", "export written"),
    "export_failed": ("내보내기 실패: {error}", "export failed: {error}"),
    # what a library logs by itself
    "library": ("{text}", "{text}"),
}


def template(key: str, language: Language) -> str:
    """Return the text of a key; a key that is not in the catalogue stands for itself, since logging never raises."""
    pair = TEXTS.get(key)
    return key if pair is None else pair[0 if language == "ko" else 1]


def fields(text: str) -> Iterable[str]:
    """Return the names of the `{fields}` of a text, in their order."""
    return [name for _, name, _, _ in Formatter().parse(text) if name]
