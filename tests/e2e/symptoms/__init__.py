"""What users of earlier services of this kind had to put up with, and the test that shows it gone.

Each row of the table is a symptom and the test that stands for it; a symptom with several sides
has more tests beside that one. `test_table.py` reads these rows.

- a broken upstream stream ends as a normal answer:
  test_broken_upstream_stream_does_not_end_as_a_normal_answer
- a failure before the first event leaves the client waiting for ever:
  test_failure_before_the_first_event_is_an_error_status_at_once
- a refused refresh token is a 500 page:
  test_refused_refresh_token_is_a_json_401_on_every_route
- the last characters of an answer are lost:
  test_last_characters_that_come_with_the_finished_event_are_not_lost
- later messages of a turn lose their first characters:
  test_later_messages_of_a_turn_keep_their_first_characters
- an open bracket at the end is lost:
  test_open_bracket_at_the_end_of_an_answer_is_not_lost
- citation marks amid other text stay raw:
  test_citation_mark_amid_other_text_of_a_delta_is_rewritten
- sandbox links stay raw where a delta cuts them:
  test_sandbox_link_is_replaced_wherever_the_deltas_cut_it
- words of the protocol vanish from the model's text:
  test_protocol_words_within_the_models_text_are_left_alone
- a character, a line end or a ping at the wrong place ends the stream:
  test_bytes_cut_anywhere_give_the_same_text
- text and code around an execution output are lost or garbled:
  test_text_and_code_around_an_execution_output_are_whole
- of several pictures only the last is shown, and a failed download is dropped:
  test_every_picture_of_one_event_is_shown
- an event without a message ends the stream:
  test_event_whose_message_is_null_does_not_end_the_stream
- one stream has several models, or no role first:
  test_stream_has_one_model_and_its_role_first
- errors are content under a 200:
  test_error_is_a_status_and_never_the_content_of_a_200
- the images route without an image is a 200:
  test_images_route_without_an_image_is_no_200
- whoever can write the cache can run code:
  test_poisoned_cache_value_is_never_run
- the upstream chooses where a download is written:
  test_download_name_of_the_upstream_leads_to_no_other_folder
- tokens and questions are in the log:
  test_tokens_and_questions_are_in_no_log
- certificates are not checked, actions are approved unasked:
  test_upstream_whose_certificate_nobody_vouches_for_gets_no_request
- a caller's URL reaches the inner network, and any size is taken:
  test_url_of_a_caller_reaches_no_private_address
- names of pictures and files can be guessed:
  test_names_of_pictures_and_files_cannot_be_guessed
- the prefix is the only protection:
  test_prefix_is_not_the_only_protection
- one account's file is used for another:
  test_file_that_one_account_brought_is_not_used_for_another
- calls to the upstream have no time limit and no pool:
  test_upstream_that_hangs_is_given_up
- prefixes never take turns, and a string is cut to its first character:
  test_prefixes_take_turns_and_a_string_is_one_prefix
- the start needs the network, and a mistake in the settings is a traceback:
  test_start_and_answers_need_no_other_host
- each process refreshes tokens of its own, and a dead one stops the rest:
  test_twenty_requests_over_several_workers_make_one_exchange
- an edited gpts.json needs a restart, and looked-up GPTs pile up:
  test_edited_gpts_file_counts_without_a_restart_in_every_worker
- silent streams cost a core and threads, and slow clients memory:
  test_silent_streams_cost_neither_cpu_nor_threads
- pictures of one second overwrite each other, and the disk fills up:
  test_pictures_of_one_second_do_not_overwrite_each_other
- several processes lose lines of one log:
  test_log_of_several_processes_loses_no_line_over_a_midnight
- long answers are killed by the worker timeout:
  test_answer_longer_than_the_workers_timeout_is_not_killed
- conversations to be deleted are not, or their files are lost:
  test_delete_after_the_response_deletes_and_files_still_come
- settings mean something else than they say:
  test_settings_mean_what_they_say_however_they_are_spelt
- a malformed request is a 500 or goes upstream as it is:
  test_malformed_request_is_a_400_and_goes_nowhere
- one module is the whole program, its renderer twice in it:
  test_images_route_and_chat_render_the_same
"""
